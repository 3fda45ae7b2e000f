//! The smallest useful filter on the stock SDK: it reads one request header and lets
//! the request pass. `cargo xtask bench` measures Tollgate beside it, so it is written
//! the way the SDK's own examples are, with nothing tuned. It stands apart from
//! Tollgate's crate because a module has only one set of `proxy_on_*` exports.
#![allow(
    missing_docs,
    reason = "`proxy_wasm::main!` makes a public function without documentation"
)]

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(Root));
}}

struct Root;

impl Context for Root {}

impl RootContext for Root {
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Hello))
    }
}

struct Hello;

impl Context for Hello {}

impl HttpContext for Hello {
    fn on_http_request_headers(&mut self, _num_headers: usize, _end_of_stream: bool) -> Action {
        // By bytes: the SDK's string getter panics on a header that is not UTF-8.
        // `black_box` keeps the read from being optimized away.
        std::hint::black_box(self.get_http_request_header_bytes("x-api-key"));
        Action::Continue
    }
}
