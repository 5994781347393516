//! Permissions of a caller: which scopes, for which clients.

use std::collections::BTreeSet;

/// A permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Record usage.
    Ingest,
    /// Read clients, usage and alerts.
    Read,
    /// Change everything. Includes `ingest` and `read`.
    Admin,
}

impl Scope {
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Ingest, Self::Read, Self::Admin];

    /// Returns its name in messages and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// Returns the scope of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// The kind of a caller. The database stores the numbers of the proto enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorKind {
    /// A caller of a server that does not require credentials.
    Anybody = 1,
    /// The holder of an API key.
    ApiKey = 2,
    /// The subject of a token of the identity provider.
    Jwt = 3,
    /// A command that works on the database directly.
    Database = 4,
}

/// Most clients that all scopes of a caller name together: a filter may name as many.
pub const GRANTED_CLIENTS_MAX: usize = 100;

/// The clients that a scope covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// All clients, including future ones, and everything that belongs to no client.
    All,
    /// Only these clients.
    Only(BTreeSet<String>),
}

/// The clients that each scope is for. `None` if the caller does not have the scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    pub ingest: Option<Clients>,
    pub read: Option<Clients>,
    pub admin: Option<Clients>,
}

impl Grants {
    /// Grants everything.
    pub fn all() -> Self {
        Self { admin: Some(Clients::All), ..Self::default() }
    }

    /// Grants a scope for these clients.
    pub fn set(&mut self, scope: Scope, clients: Clients) {
        *match scope {
            Scope::Ingest => &mut self.ingest,
            Scope::Read => &mut self.read,
            Scope::Admin => &mut self.admin,
        } = Some(clients);
    }

    /// Returns the clients that the scope itself covers. The clients of the admin scope are not included.
    pub fn get(&self, scope: Scope) -> Option<&Clients> {
        match scope {
            Scope::Ingest => self.ingest.as_ref(),
            Scope::Read => self.read.as_ref(),
            Scope::Admin => self.admin.as_ref(),
        }
    }

    /// Returns the grants that include the scope: its own and admin.
    fn grants_including(&self, scope: Scope) -> impl Iterator<Item = &Clients> {
        let own = if scope == Scope::Admin { None } else { self.get(scope) };
        own.into_iter().chain(&self.admin)
    }

    /// Returns whether the caller has the scope for any client.
    pub fn has(&self, scope: Scope) -> bool {
        self.grants_including(scope).next().is_some()
    }

    /// Returns whether the scope covers this client.
    pub fn covers(&self, scope: Scope, client_id: &str) -> bool {
        self.grants_including(scope).any(|clients| match clients {
            Clients::All => true,
            Clients::Only(ids) => ids.contains(client_id),
        })
    }

    /// Returns whether the scope covers all clients.
    pub fn covers_all(&self, scope: Scope) -> bool {
        self.grants_including(scope).any(|clients| *clients == Clients::All)
    }

    /// Returns the clients for which the caller has a scope, whichever it is. The caller may see the prices for these clients. `None`:
    /// all clients.
    pub fn clients_of_prices(&self) -> Option<Vec<String>> {
        let scopes = [Scope::Ingest, Scope::Read, Scope::Admin];
        match scopes.iter().any(|scope| self.covers_all(*scope)) {
            true => None,
            false => Some(scopes.iter().flat_map(|scope| self.covered(*scope)).collect()),
        }
    }

    /// Returns the clients named for the scope, sorted. Clients are not named if the scope covers all.
    pub fn covered(&self, scope: Scope) -> Vec<String> {
        let these = self.grants_including(scope).filter_map(|clients| match clients {
            Clients::All => None,
            Clients::Only(ids) => Some(ids),
        });
        these.flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(ids: &[&str]) -> Option<Clients> {
        Some(Clients::Only(ids.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn a_scope_covers_its_clients_and_no_others() {
        let grants = Grants { ingest: Some(Clients::All), read: these(&["a", "b"]), admin: None };
        assert!(grants.covers(Scope::Ingest, "x") && grants.covers_all(Scope::Ingest));
        assert!(grants.covers(Scope::Read, "a") && !grants.covers(Scope::Read, "x") && !grants.covers_all(Scope::Read));
        assert!(!grants.has(Scope::Admin) && !grants.covers(Scope::Admin, "a"));
        assert_eq!(grants.covered(Scope::Read), ["a", "b"]);
    }

    #[test]
    fn admin_includes_the_other_scopes_for_its_clients() {
        let grants = Grants { read: these(&["a"]), admin: these(&["b"]), ingest: None };
        assert!(grants.has(Scope::Ingest) && grants.covers(Scope::Ingest, "b") && !grants.covers(Scope::Ingest, "a"));
        assert_eq!(grants.covered(Scope::Read), ["a", "b"]);
        assert_eq!(grants.covered(Scope::Admin), ["b"]);
        let of_prices = grants.clients_of_prices().unwrap();
        assert!(of_prices.contains(&"a".to_owned()) && of_prices.contains(&"b".to_owned()) && of_prices.len() > 1);
        assert_eq!(Grants { ingest: Some(Clients::All), ..grants.clone() }.clients_of_prices(), None);
        assert_eq!(Grants::default().clients_of_prices(), Some(vec![]));
        assert!(Grants::all().covers_all(Scope::Read) && Grants::all().covers_all(Scope::Ingest));
    }

    #[test]
    fn empty_grants_cover_nothing() {
        let grants = Grants::default();
        for scope in [Scope::Ingest, Scope::Read, Scope::Admin] {
            assert!(!grants.has(scope) && !grants.covers(scope, "") && !grants.covers_all(scope));
        }
    }
}
