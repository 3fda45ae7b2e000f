//! Records as bytes that anybody may have written, and whatever is done with them.
//!
//! An input is nine bytes that say what a request costs, when it comes and what happens to
//! the record, and then the record.

use tollgate::authorization::{Flights, Message, Outcome, Record, codec, in_place};
use tollgate::credentials::Digest;
use tollgate::mapping::{Metrics, Usage};
use tollgate::moment::Moment;
use tollgate::service_management::{AuthorizeAnswer, Identification, Reply, authorize_answer};
use tollgate::shared_data::{SetError, SharedData, Token};

/// Names that records of the corpus have.
const NAMES: [&str; 4] = ["hits", "orders", "orders_vip", "ads"];
/// What service management says now.
const ANSWER: &[u8] = b"<status><authorized>true</authorized><usage_reports>\
    <usage_report metric=\"hits\" period=\"eternity\"><max_value>5</max_value>\
    <current_value>7</current_value></usage_report>\
    <usage_report metric=\"orders\" period=\"day\"><period_start>2027-01-15 00:00:00 +0000</period_start>\
    <period_end>2027-01-16 00:00:00 +0000</period_end><max_value>100</max_value>\
    <current_value>2</current_value></usage_report></usage_reports><hierarchy>\
    <metric name=\"hits\" children=\"orders ads\"/></hierarchy></status>";
/// 2027-01-15 08:00:00 UTC.
const START: u64 = 1_800_000_000;

/// What can be read is written as it was read, what is admitted on the bytes is what the
/// record admits, and nothing that is done with a record panics.
///
/// # Panics
/// If that is not so.
pub fn record(data: &[u8]) {
    let Some((head, bytes)) = data.split_first_chunk::<9>() else {
        return;
    };
    let [
        first,
        second,
        delta,
        minutes,
        seconds,
        age,
        happens,
        batch,
        most,
    ] = *head;
    foreign(bytes);
    let mut record = Record::vacant();
    if codec::decode(bytes, &mut record).is_err() {
        return;
    }
    let mut written = Vec::new();
    codec::encode(&record, &mut written);
    assert_eq!(written.len(), bytes.len());
    let mut again = Record::vacant();
    assert_eq!(
        codec::decode(&written, &mut again),
        Ok(()),
        "what was written"
    );
    let mut rewritten = Vec::new();
    codec::encode(&again, &mut rewritten);
    assert_eq!(written, rewritten);
    assert_eq!(codec::digest_of(&written), Some(record.digest));

    let pairs = [(0, None), (1, Some("hits")), (2, Some("orders")), (3, None)];
    let name = |index: usize| NAMES.get(index).copied().unwrap_or_default().to_owned();
    let metrics = pairs.map(|(index, parent)| (name(index), parent.map(str::to_owned)));
    let metrics = Metrics::new(metrics).expect("metrics");
    let ids: Vec<_> = metrics.ids().collect();
    let mut usage = Usage::new();
    for byte in [first, second] {
        if let Some(id) = ids.get(usize::from(byte) % 5) {
            usage.add(*id, u64::from(delta).saturating_add(1));
        }
    }
    let now = Moment {
        wall: START
            .saturating_add(u64::from(minutes) * 60)
            .saturating_add(u64::from(seconds))
            .saturating_mul(1_000),
        monotonic: record.fresh_until.saturating_sub(u64::from(age)),
    };

    let mut in_bytes = written.clone();
    let mut long = again.clone();
    let mut other = Digest(record.digest.0.map(|byte| !byte));
    let admitted = in_place::admit(&mut in_bytes, record.digest, &usage, &metrics, now, |_| {
        true
    });
    let decided = long.admit(&usage, &metrics, now);
    if admitted {
        assert_eq!(decided, Ok(()));
        let mut expected = Vec::new();
        codec::encode(&long, &mut expected);
        assert_eq!(in_bytes, expected);
    } else {
        assert_eq!(in_bytes, written);
    }
    for digest in [&mut other, &mut Digest([0; 16])] {
        if *digest != record.digest {
            assert!(!in_place::admit(
                &mut in_bytes,
                *digest,
                &usage,
                &metrics,
                now,
                |_| true
            ));
        }
    }

    let mut record = again;
    let reply = Reply {
        status: 200,
        rejection_reason: None,
        from_upstream: true,
        body: ANSWER,
    };
    let AuthorizeAnswer::Known(answer) = authorize_answer(&reply, Identification::UserKey) else {
        panic!("the answer is one");
    };
    let _ = (record.quota(false), record.least_headroom(now));
    let _ = (record.may_give_way(now), record.wants_confirmation(now));
    let _ = (record.limits().count(), record.accounts().count());
    let shown = format!("{record:?}");
    let identity = String::from_utf8_lossy(&record.identity);
    assert!(
        identity.len() < 24
            || !shown.contains(&*identity)
            || bytes_name(bytes, &record.identity) > 1
    );
    for step in 0..8 {
        if happens & (1 << step) == 0 {
            continue;
        }
        let batch = u64::from(batch);
        match step {
            0 => drop(record.refresh(&answer, &metrics, now, 600_000, 60_000)),
            1 => drop(record.admit(&usage, &metrics, now)),
            2 => drop(record.dispatch(batch, now.monotonic, usize::from(most), &metrics)),
            3 => drop(record.settle(batch, Outcome::Acknowledged, &metrics, now)),
            4 => drop(record.settle(record.batch, Outcome::Resent, &metrics, now)),
            5 => {
                record.bring_back(&metrics, now);
                drop(record.give_up_unreportable(&metrics, now));
            }
            6 => drop((record.publish(&metrics), record.take_urgent())),
            _ => {
                let accuracy = tollgate::authorization::Accuracy::Strict {
                    gateways: u16::from(most),
                    settled_after: 1,
                };
                let _ = record.renew_grants(&answer, accuracy, now);
            }
        }
        codec::encode(&record, &mut written);
        let kept = codec::decode(&written, &mut Record::vacant());
        assert_eq!(kept, Ok(()), "after step {step}");
    }
}

/// How often these bytes stand in those.
fn bytes_name(bytes: &[u8], name: &[u8]) -> usize {
    bytes
        .windows(name.len().max(1))
        .filter(|window| *window == name)
        .count()
}

/// The other values that VMs share.
fn foreign(bytes: &[u8]) {
    if let Some(message) = Message::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    let now = Moment {
        wall: START * 1_000,
        monotonic: 1_000_000,
    };
    let data = Same(bytes);
    let mut flights = Flights::default();
    let _ = flights.join(&data, Digest([1; 16]), 1, None, now, 1_000);
    let _ = flights.land(&data, Digest([1; 16]), 1);
    let _ = tollgate::authorization::mailboxes::renew(&data, 0, 1, now);
}

/// Shared data of which every value is this one.
struct Same<'a>(&'a [u8]);

impl SharedData for Same<'_> {
    fn get(&self, _: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        into.clear();
        into.extend_from_slice(self.0);
        Ok(Token(7))
    }

    fn set(&self, _: &[u8], _: &[u8], _: Token) -> Result<(), SetError> {
        Ok(())
    }
}
