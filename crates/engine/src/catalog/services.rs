//! Services whose usage can be metered.

use crate::clients::DISPLAY_NAME_BYTES_MAX;
use crate::engine::Engine;
use crate::fields::Fields;
use crate::idempotency::{CreateCall, Created, Idempotency};
use crate::refusal::{Reason, Refusal};
use meterd_domain::catalog::{Service, ServiceCategory};
use meterd_domain::event::ID_BYTES_MAX;
use meterd_store::catalog::pricing;
use meterd_store::usage::summaries;
use meterd_store::{catalog as store, locks};

const UNIT_BYTES_MAX: usize = 64;
const UNIT_DEFAULT: &str = "unit";
const UNCOUNTED_OPERATIONS_MAX: usize = 100;

/// A service to create, unchecked.
#[derive(Debug, Default)]
pub struct NewService {
    pub service: String,
    /// Empty: the name of the service.
    pub display_name: String,
    /// A number of [`ServiceCategory`]. 0: other.
    pub category: i32,
    /// Empty: "unit".
    pub unit: String,
    pub recurring: bool,
    pub uncounted_operations: Vec<String>,
}

/// Lists all services, ordered by name.
pub async fn list(engine: &Engine) -> Result<Vec<Service>, Refusal> {
    let catalog = engine.catalog.refresh(&engine.pool).await?;
    Ok(catalog.services().cloned().collect())
}

/// Creates a service. Events of it that were recorded before are priced, and their months are summed up again.
pub async fn create(
    engine: &Engine,
    service: NewService,
    idempotency: Idempotency<Service>,
) -> Result<Created<Service>, Refusal> {
    let service = check(service, &idempotency)?;
    let mut creation = match idempotency.begin(engine).await? {
        CreateCall::New(creation) => creation,
        CreateCall::Repeat(answer) => return Ok(Created::Repeat(answer)),
    };
    locks::change_versions(creation.conn()).await?;
    if !store::insert_service(creation.conn(), &service).await? {
        let message = format!("service {:?} exists", service.service);
        return Err(Refusal::new(Reason::ServiceExists, message));
    }
    store::bump_version(creation.conn()).await?;
    // Recorded events of an unknown service get another reason, and their months are counted by the category from now on.
    pricing::insert_task(creation.conn(), &service.service).await?;
    summaries::mark_stale(creation.conn(), &service.service).await?;
    creation.commit(&service).await?;
    Ok(Created::New(service))
}

fn check(service: NewService, idempotency: &Idempotency<Service>) -> Result<Service, Refusal> {
    let NewService { service, display_name, category, unit, recurring, uncounted_operations } = service;
    let mut fields = Fields::default();
    fields.required_identifier("service.service", &service, ID_BYTES_MAX);
    fields.text("service.display_name", &display_name, DISPLAY_NAME_BYTES_MAX);
    fields.text("service.unit", &unit, UNIT_BYTES_MAX);
    let category = check_category(&mut fields, category);
    if uncounted_operations.len() > UNCOUNTED_OPERATIONS_MAX {
        fields.wrong("service.uncounted_operations", format!("must be at most {UNCOUNTED_OPERATIONS_MAX}"));
    }
    for (index, operation) in uncounted_operations.iter().take(UNCOUNTED_OPERATIONS_MAX).enumerate() {
        fields.identifier(&format!("service.uncounted_operations[{index}]"), operation, ID_BYTES_MAX);
    }
    idempotency.check(&mut fields);
    fields.finish()?;
    let or = |text: String, default: &str| if text.is_empty() { default.to_string() } else { text };
    Ok(Service {
        display_name: or(display_name, &service),
        service: service.into(),
        category: category as i16,
        unit: or(unit, UNIT_DEFAULT),
        recurring,
        uncounted_operations,
    })
}

fn check_category(fields: &mut Fields, category: i32) -> ServiceCategory {
    if category == 0 {
        return ServiceCategory::Other;
    }
    let known = i16::try_from(category).ok().and_then(|number| ServiceCategory::try_from(number).ok());
    if known.is_none() {
        fields.wrong("service.category", format!("{category} is no category"));
    }
    known.unwrap_or(ServiceCategory::Other)
}
