//! Replies of service management: to questions, to questions about metrics, to reports.
//!
//! An input is text: a line with the status (and `!` behind it if Envoy itself answered), a
//! line with the reason of a refusal, and the body.

use tollgate::service_management::{
    AuthorizeAnswer, Identification, Reply, authorize_answer, listed_keys, metrics_answer,
    report_answer,
};

use crate::cut;

/// A reply is understood or not; what is understood keeps its bounds, and `Debug` shows no key.
///
/// # Panics
/// If that is not so.
pub fn replies(data: &[u8]) {
    let (status, rest) = cut(data, b'\n');
    let (reason, body) = cut(rest, b'\n');
    let from_upstream = !status.ends_with(b"!");
    let status = String::from_utf8_lossy(status);
    let reply = Reply {
        status: status.trim_end_matches('!').parse().unwrap_or(0),
        rejection_reason: (!reason.is_empty()).then_some(reason),
        from_upstream,
        body,
    };
    let _ = format!("{reply:?} {:?}", report_answer(&reply));
    if let Some(keys) = listed_keys(&reply) {
        assert!(keys.len() < 256);
    }
    let metrics = ["hits", "orders"].map(str::to_owned);
    for asked in [Identification::UserKey, Identification::AppId] {
        let answer = authorize_answer(&reply, asked);
        let _ = metrics_answer(&answer, &reply, &metrics);
        let AuthorizeAnswer::Known(known) = &answer else {
            continue;
        };
        assert!(reply.status == 200 || reply.status == 409);
        assert!(known.limits.len() <= 256);
        assert!(known.hierarchy.len() <= 1_024);
        for limit in &known.limits {
            assert!((1..=128).contains(&limit.metric.len()));
            assert!(limit.window.start < limit.window.end);
        }
        let shown = format!("{answer:?}");
        for key in known.app_keys.iter().flatten() {
            assert!(!key.is_empty());
            let elsewhere = |name: &str| name.contains(&**key);
            let named = known.limits.iter().any(|limit| elsewhere(&limit.metric))
                || known
                    .hierarchy
                    .iter()
                    .any(|(parent, child)| elsewhere(parent) || elsewhere(child));
            // Short ones may stand in a type's name.
            assert!(key.len() < 24 || named || !shown.contains(&**key));
        }
    }
}
