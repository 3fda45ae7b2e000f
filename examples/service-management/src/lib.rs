//! A local stand-in for the 3scale Service Management API, for development and
//! tests. It answers as the real backend does (apisonator 3.4.3), which the
//! exchanges captured from one prove; it keeps everything in memory.
//!
//! [`Backend`] is the whole protocol as a state machine without I/O: a
//! [`Request`] and a moment in, a [`Response`] out. What it knows is a
//! [`Dataset`]; what it counts is [`Usage`]. [`StandIn`] puts one on a socket,
//! with faults and a control interface under `/stand-in/`.
//!
//! ```
//! use service_management::{Dataset, Options, StandIn};
//!
//! # tokio::runtime::Runtime::new().unwrap().block_on(async {
//! let dataset = Dataset::from_yaml(
//!     r#"
//!     service_token: secret
//!     metrics: { hits: null }
//!     plans: { small: { hits: { minute: 5 } } }
//!     services:
//!       "1001":
//!         backend_version: "1"
//!         applications: { alice: { plan: small, user_key: alice-key } }
//!     "#,
//! )?;
//! let stand_in = StandIn::start(dataset, Options::default()).await?;
//! println!("ask http://{}/transactions/authorize.xml", stand_in.address());
//! assert_eq!(stand_in.usage().total("1001", "alice", "hits"), 0);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! The modules, outside in: `server` (connections, the handle), `control` (the
//! control interface), `faults`, `journal` (the calls), `backend` (routing,
//! credentials, the queue), `authorize` and `report` (the endpoints), `status`
//! (the verdict's document and headers), `usage` (what usage means), `counters`,
//! `dataset`, `parameters` and `form` (reading requests), `message` and `error`
//! (writing responses), `calendar`, `clock`.

mod authorize;
mod backend;
mod calendar;
mod clock;
mod control;
mod counters;
mod dataset;
mod error;
mod faults;
mod form;
mod journal;
mod message;
mod parameters;
mod report;
mod server;
mod status;
mod usage;

pub use backend::{Backend, Endpoint, Errors, IntegrationError};
pub use calendar::Period;
pub use clock::Clock;
pub use counters::Usage;
pub use dataset::{ApplicationChange, Dataset, DatasetError};
pub use faults::{Fault, FaultRule, FaultScope};
pub use journal::{Call, Calls};
pub use message::{Request, Response};
pub use server::{Options, StandIn};
