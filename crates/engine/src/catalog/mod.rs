//! The catalogue: services, prices and model aliases.

pub mod aliases;
pub mod built_in;
mod cache;
pub mod estimate;
pub mod import;
mod new_price;
pub mod prices;
mod seed;
pub mod services;

pub use cache::CatalogCache;
pub use seed::seed;

use crate::fields::Fields;
use crate::refusal::Reason;
use meterd_domain::catalog::Catalog;
use meterd_domain::event::ID_BYTES_MAX;
use meterd_domain::names;

/// Adds an error if a service is not in the catalogue. The length of the name is checked elsewhere.
pub(crate) fn check_service(fields: &mut Fields, catalog: &Catalog, field: &str, service: &str) {
    if (1..=ID_BYTES_MAX).contains(&service.len()) && catalog.service(service).is_none() {
        let (reason, description) = unknown_service(catalog, service);
        fields.wrong_because(reason, field, description);
    }
}

/// Returns the reason and the description of a service that is not in the catalogue, with the nearest names.
pub fn unknown_service(catalog: &Catalog, service: &str) -> (Reason, String) {
    let nearest = names::nearest(service, catalog.services().map(|service| &*service.service));
    let hint = match nearest.as_slice() {
        [] => "CatalogService.ListServices has them all, and CreateService adds one".to_string(),
        names => format!("did you mean {}?", names.join(", ")),
    };
    (Reason::UnknownService, format!("there is no service {service:?}; {hint}"))
}
