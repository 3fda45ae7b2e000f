//! The plugin's configuration: from bytes to settings that can be relied on.
//!
//! Apart from the rooms that use the settings so that everything that can be wrong
//! with them is found here, once, when Envoy hands the configuration over; and is
//! told with the field's path and what would be right. What comes out of
//! [`Configuration::parse`] needs no more checks. `docs/configuration.md` is the
//! reference for operators; a test loads every configuration in it.

mod accuracy;
mod credentials;
mod duration;
mod error;
mod exemption;
mod hosts;
mod introspection;
mod replies;
mod secret;
mod service;
mod settings;
mod shape;
mod sharing;
#[cfg(test)]
mod tests;
mod tokens;
mod trust;

use std::rc::Rc;

use error::Place;
use hosts::HostTable;
use sharing::Entrant;

pub use error::{ConfigurationError, Problem};
pub use exemption::{Exemption, ExemptionError};
pub use hosts::{HostError, HostPattern, NotAHost};
pub use replies::{Outcome, Replies, ReplyForm, ReplyHeader, ReplyHeaderError};
pub use secret::Secret;
pub use service::{Right, Service};
pub use settings::{
    AuthorizationSettings, ReportingSettings, ServiceManagement, Uncertain, UnmatchedHosts,
};
pub use sharing::{PathPrefix, PathPrefixError, RouteName, Share};
pub use tokens::Tokens;
pub use trust::{Trust, Unknown};

/// What a variable of the VM's environment holds, if it is there.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A checked configuration.
///
/// Invariants: there is at least one service; ids are unique; services that have a host
/// pattern in common differ in path prefix or route. Only [`parse`](Self::parse) makes one.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// Whom to ask and to tell.
    pub service_management: ServiceManagement,
    /// What is guarded, in the order written.
    pub services: Vec<Rc<Service>>,
    /// How long answers are good for.
    pub authorization: AuthorizationSettings,
    /// How usage is handed on.
    pub reporting: ReportingSettings,
    /// What becomes of requests for hosts of no service.
    pub unmatched_hosts: UnmatchedHosts,
    /// What callers are told when no service is theirs; services have their own.
    pub replies: Replies,
    hosts: HostTable,
}

impl Configuration {
    /// Reads a configuration from JSON (RFC 8259, UTF-8, perhaps after a byte order mark).
    ///
    /// `environment` is asked for the variables that tokens name.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its path. Errors never carry a token.
    pub fn parse(bytes: &[u8], environment: Environment<'_>) -> Result<Self, ConfigurationError> {
        let shape = shape::read(bytes)?;
        let root = Place::ROOT;
        let service_management = ServiceManagement::check(
            shape.service_management.0,
            &root.field("service_management"),
        )?;

        let authorization =
            AuthorizationSettings::check(&shape.authorization.0, &root.field("authorization"))?;
        let replies = Replies::default().changed(&shape.replies, &root.field("replies"))?;
        let place = root.field("services");
        if shape.services.is_empty() {
            return Err(place.error(Problem::EmptyList(
                "at least one service is needed, or all requests are denied",
            )));
        }
        let mut services: Vec<Rc<Service>> = Vec::with_capacity(shape.services.len());
        let mut hosts = HostTable::default();
        for (index, shape) in shape.services.into_iter().enumerate() {
            let place = place.index(index);
            let service = Service::check(
                shape.0,
                &place,
                &service_management,
                &replies,
                authorization.trust,
                environment,
            )?;
            claim(&service, index, &services, &mut hosts, &place)?;
            services.push(Rc::new(service));
        }

        Ok(Self {
            service_management,
            services,
            authorization,
            reporting: ReportingSettings::check(&shape.reporting.0, &root.field("reporting"))?,
            unmatched_hosts: UnmatchedHosts::check(
                shape.unmatched_hosts.as_ref(),
                &root.field("unmatched_hosts"),
            )?,
            replies,
            hosts,
        })
    }

    /// The service that a request with this `:authority` and `:path` is for.
    ///
    /// Port, case and a dot at the end of the host do not matter. An exact host goes before
    /// a wildcard, a longer wildcard before a shorter one, and `*` comes last. Of services
    /// that share the host, the one with the longest prefix of the path; of two with the
    /// same prefix, the one that names the route. `route` is asked for its name, at most
    /// once, where a service on this host names one.
    ///
    /// # Errors
    ///
    /// That there is none, and why.
    pub fn service_for(
        &self,
        authority: &[u8],
        target: &[u8],
        route: impl FnOnce() -> Option<Vec<u8>>,
    ) -> Result<Chosen, NoService> {
        let sharing = self.hosts.services_at(authority)?;
        let sharing = sharing.ok_or(NoService::Host)?;
        let index = sharing.service_for(target, route).ok_or(NoService::Share)?;
        Ok(Chosen {
            index,
            by_host_alone: sharing.is_by_host_alone(),
        })
    }
}

/// The service that a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its index in [`Configuration::services`].
    pub index: usize,
    /// Whether all requests with this authority are for it, whatever their path and route.
    pub by_host_alone: bool,
}

/// Why a request belongs to no service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoService {
    /// Its host is none. The request must be refused, whatever is configured: nobody can say
    /// which route Envoy takes it for.
    NotAHost,
    /// No service has its host: [`Configuration::unmatched_hosts`] decides.
    Host,
    /// Services have its host, but not with this path or route. The request must be
    /// refused: the host is guarded.
    Share,
}

impl From<NotAHost> for NoService {
    fn from(_: NotAHost) -> Self {
        Self::NotAHost
    }
}

/// Claims a service's id and its share of its hosts, which no other service may have.
fn claim(
    service: &Service,
    index: usize,
    earlier: &[Rc<Service>],
    hosts: &mut HostTable,
    place: &Place<'_>,
) -> Result<(), ConfigurationError> {
    if let Some(first) = earlier.iter().position(|other| other.id == service.id) {
        return Err(place.field("id").error(Problem::RepeatedService {
            found: error::quoted(&service.id),
            first: format!("services[{first}]"),
        }));
    }
    for (host, pattern) in service.hosts.iter().enumerate() {
        let entrant = Entrant {
            service: index,
            host,
        };
        hosts
            .enter(pattern, &service.share, entrant)
            .map_err(|first| {
                let owner = earlier.get(first.service).map_or(service, |owner| owner);
                place.field("hosts").index(host).error(Problem::HostTaken {
                    found: error::quoted(&pattern.to_string()),
                    service: owner.id.clone(),
                    first: format!("services[{}].hosts[{}]", first.service, first.host),
                })
            })?;
    }
    Ok(())
}
