//! Questions under way, over all workers: who asks about an application, and who waits for
//! the answer.
//!
//! Apart from the records because nothing is known yet of what is asked about: strangers
//! must take no slot. The table is small and bounded, and may be full, wrong or gone at any
//! time: then somebody asks once more than needed, and nothing else happens. Whoever asks
//! has until a deadline; after it, another takes the question over, so that nobody waits
//! for a VM that died.
//!
//! Those who wait are woken by a message to their mailbox ([`super::mailboxes`]). A message
//! is for a VM, not for a request, and carries what became of the question, because not
//! everything that may become of it is kept in shared data.

use super::mailboxes::Mailbox;
use crate::credentials::Digest;
use crate::moment::Moment;
use crate::service_management::{Denial, Failure};
use crate::shared_data::{ATTEMPTS, Key, SetError, SharedData};

const KIND: u8 = b'f';
const MAGIC: &[u8; 4] = b"TGf1";
const MESSAGE_MAGIC: &[u8; 4] = b"TGw1";
/// Values that the table is spread over.
const PLACES: u32 = 256;
/// No question takes longer, in whatever configuration (milliseconds): as long as may be configured, and
/// what is given to others until they look after it.
const LONGEST: u64 = 61_000;
/// Flights in one value. All places together hold eight times as many as the calls that
/// Envoy's circuit breaker lets through by our example.
const MOST_FLIGHTS: usize = 8;
/// Root contexts that may wait for one flight.
const MOST_WAITING: usize = 128;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// The caller: it asks, and says what became of it ([`Flights::land`]).
    Asks,
    /// Another, until then (monotonic milliseconds).
    Waits {
        /// After it, whoever waits may take over.
        until: u64,
    },
    /// Nobody can say: the caller asks for itself. Landing does no harm.
    Alone,
}

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landing {
    /// There is a record: decide on it.
    Remembered,
    /// The application is known and no slot may give way: whoever waits asks for itself.
    Uncached,
    /// Service management denies the application.
    Denied(Denial),
    /// There was no usable answer.
    Failed,
    /// There was none, perhaps for what was asked: nobody is let in for it.
    Doubtful,
    /// Service management refuses whoever asked: perhaps not whoever waits, whose
    /// configuration may be a newer one.
    Misconfigured,
    /// The answer could not be kept.
    Contended,
    /// Too many unknown credentials are asked about already.
    OverBudget,
}

impl Landing {
    /// There was no usable answer. Whoever is to be let in where nobody can be asked must not
    /// be so because of a key that makes something before service management refuse the question.
    #[must_use]
    pub const fn failed(failure: Failure) -> Self {
        if failure.may_be_of_the_consumers_making() {
            Self::Doubtful
        } else {
            Self::Failed
        }
    }

    /// Service management denies the application, or only what was shown in the question: then
    /// whoever waits looks whether that is what it shows itself.
    #[must_use]
    pub const fn denied(denial: Denial) -> Self {
        if denial.is_of_the_application() {
            Self::Denied(denial)
        } else {
            Self::Remembered
        }
    }
}

/// What wakes a root context: the application whose question has landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The root context that waited; anybody else drops the message.
    pub owner: u64,
    /// The application.
    pub digest: Digest,
    /// What became of the question.
    pub landing: Landing,
}

/// One question under way.
#[derive(Debug, PartialEq, Eq)]
struct Flight {
    digest: Digest,
    asker: u64,
    until: u64,
    waiting: Vec<Mailbox>,
}

/// The table, as one VM sees it.
///
/// A value is magic, then for each flight digest, asker, deadline (monotonic milliseconds),
/// the number of those who wait, and for each of them queue and owner; little-endian.
#[derive(Debug, Default)]
pub struct Flights {
    value: Vec<u8>,
    flights: Vec<Flight>,
}

impl Flights {
    /// Asks about an application, or waits for another who does: who of them, says the
    /// result. `asker` is the caller's random number; a question takes at most
    /// `milliseconds`. Without a mailbox the caller is told who asks, and not woken.
    pub fn join(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        asker: u64,
        mailbox: Option<Mailbox>,
        now: Moment,
        milliseconds: u64,
    ) -> Joined {
        let until = now.monotonic.saturating_add(milliseconds);
        // A clock may be read a little later elsewhere.
        let until_at_most =
            |milliseconds: u64| now.monotonic.saturating_add(milliseconds.saturating_mul(2));
        let longest = until_at_most(milliseconds);
        self.change(data, digest, |flights| {
            let is_under_way = |flight: &Flight, longest: u64| {
                now.monotonic < flight.until && flight.until <= longest
            };
            if let Some(flight) = flights.iter_mut().find(|flight| flight.digest == digest) {
                // Nobody waits for longer than it takes to ask.
                if !is_under_way(flight, longest) {
                    flight.asker = asker;
                    flight.until = until;
                    return (true, Joined::Asks);
                }
                let waits = Joined::Waits {
                    until: flight.until,
                };
                let Some(mailbox) = mailbox.filter(|mine| !flight.waiting.contains(mine)) else {
                    return (false, waits);
                };
                if flight.waiting.len() >= MOST_WAITING {
                    return (false, Joined::Alone);
                }
                flight.waiting.push(mailbox);
                return (true, waits);
            }
            // Other questions may be of a configuration in which they take longer.
            let longest = until_at_most(milliseconds.max(LONGEST));
            flights.retain(|flight| is_under_way(flight, longest));
            if flights.len() >= MOST_FLIGHTS {
                return (false, Joined::Alone);
            }
            flights.push(Flight {
                digest,
                asker,
                until,
                waiting: Vec::new(),
            });
            (true, Joined::Asks)
        })
        .unwrap_or(Joined::Alone)
    }

    /// The question of this asker is answered, and what the answer says is kept: returns who
    /// is to be woken. Nobody, if another has taken it over.
    pub fn land(&mut self, data: &impl SharedData, digest: Digest, asker: u64) -> Vec<Mailbox> {
        self.change(data, digest, |flights| {
            let place = flights
                .iter()
                .position(|flight| flight.digest == digest && flight.asker == asker);
            match place {
                Some(place) => (true, flights.swap_remove(place).waiting),
                None => (false, Vec::new()),
            }
        })
        .unwrap_or_default()
    }

    /// Changes the flights of the digest's place, as often as others come in between; the
    /// change says whether anything is to be written. `None`: it could not be.
    fn change<T>(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        mut change: impl FnMut(&mut Vec<Flight>) -> (bool, T),
    ) -> Option<T> {
        let [first, ..] = digest.0;
        let key = Key::new(KIND, 0, u32::from(first) % PLACES);
        for _ in 0..ATTEMPTS {
            let token = data.get(key.as_bytes(), &mut self.value).ok()?;
            self.flights.clear();
            decode(&self.value, &mut self.flights);
            let (changed, done) = change(&mut self.flights);
            if !changed {
                return Some(done);
            }
            encode(&self.flights, &mut self.value);
            match data.set(key.as_bytes(), &self.value, token) {
                Ok(()) => return Some(done),
                Err(SetError::Mismatch) => {}
                Err(SetError::Unavailable) => return None,
            }
        }
        None
    }
}

impl Message {
    /// The message as it is put into a queue: magic, owner, digest, and what became of the
    /// question in two bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let landing = match self.landing {
            Landing::Remembered => [0, 0],
            Landing::Uncached => [1, 0],
            Landing::Denied(denial) => [2, denial.code()],
            Landing::Failed => [3, 0],
            Landing::Misconfigured => [4, 0],
            Landing::Contended => [5, 0],
            Landing::OverBudget => [6, 0],
            Landing::Doubtful => [7, 0],
        };
        [
            &MESSAGE_MAGIC[..],
            &self.owner.to_le_bytes(),
            &self.digest.0,
            &landing,
        ]
        .concat()
    }

    /// The message of these bytes, if they are one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (owner, rest) = bytes
            .strip_prefix(MESSAGE_MAGIC)?
            .split_first_chunk::<8>()?;
        let (digest, landing) = rest.split_first_chunk::<16>()?;
        let landing = match *landing.first_chunk::<2>().filter(|_| landing.len() == 2)? {
            [0, 0] => Landing::Remembered,
            [1, 0] => Landing::Uncached,
            [2, denial] => Landing::Denied(Denial::from_code(denial)?),
            [3, 0] => Landing::Failed,
            [4, 0] => Landing::Misconfigured,
            [5, 0] => Landing::Contended,
            [6, 0] => Landing::OverBudget,
            [7, 0] => Landing::Doubtful,
            _ => return None,
        };
        Some(Self {
            owner: u64::from_le_bytes(*owner),
            digest: Digest(*digest),
            landing,
        })
    }
}

/// Reads flights until the bytes are none of ours any more.
fn decode(value: &[u8], flights: &mut Vec<Flight>) {
    let mut rest = value.strip_prefix(MAGIC).unwrap_or_default();
    while flights.len() < MOST_FLIGHTS
        && let Some((flight, after)) = decode_flight(rest)
    {
        rest = after;
        flights.push(flight);
    }
}

fn decode_flight(bytes: &[u8]) -> Option<(Flight, &[u8])> {
    let (digest, rest) = bytes.split_first_chunk::<16>()?;
    let (asker, rest) = rest.split_first_chunk::<8>()?;
    let (until, rest) = rest.split_first_chunk::<8>()?;
    let (count, mut rest) = rest.split_first()?;
    let mut waiting = Vec::new();
    for _ in 0..usize::from(*count).min(MOST_WAITING) {
        let (queue, after) = rest.split_first_chunk::<4>()?;
        let (owner, after) = after.split_first_chunk::<8>()?;
        rest = after;
        waiting.push(Mailbox {
            queue: u32::from_le_bytes(*queue),
            owner: u64::from_le_bytes(*owner),
        });
    }
    let flight = Flight {
        digest: Digest(*digest),
        asker: u64::from_le_bytes(*asker),
        until: u64::from_le_bytes(*until),
        waiting,
    };
    Some((flight, rest))
}

fn encode(flights: &[Flight], into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(MAGIC);
    for flight in flights {
        into.extend_from_slice(&flight.digest.0);
        into.extend_from_slice(&flight.asker.to_le_bytes());
        into.extend_from_slice(&flight.until.to_le_bytes());
        into.push(u8::try_from(flight.waiting.len()).unwrap_or(0));
        for mailbox in &flight.waiting {
            into.extend_from_slice(&mailbox.queue.to_le_bytes());
            into.extend_from_slice(&mailbox.owner.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::Token;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// Digests of one place.
    fn digest(number: u8) -> Digest {
        let mut bytes = [0; 16];
        bytes[15] = number;
        Digest(bytes)
    }

    fn mailbox(owner: u64) -> Mailbox {
        Mailbox {
            queue: u32::try_from(owner).unwrap(),
            owner,
        }
    }

    /// A VM of that number joins at that time; a question takes at most 100 ms.
    fn join(data: &Memory, application: u8, vm: u64, now: u64) -> Joined {
        Flights::default().join(
            data,
            digest(application),
            vm,
            Some(mailbox(vm)),
            at(now),
            100,
        )
    }

    fn land(data: &Memory, application: u8, vm: u64) -> Vec<Mailbox> {
        Flights::default().land(data, digest(application), vm)
    }

    #[test]
    fn whoever_takes_less_time_leaves_the_questions_of_those_who_take_more() {
        let (data, mut flights) = (Memory::default(), Flights::default());
        let (slow, quick) = (11_000, 2_000);
        // So that the two stand in one value.
        let digest = |last: u8| Digest([&[7; 15][..], &[last]].concat().try_into().unwrap());
        let mailbox = Mailbox { queue: 1, owner: 3 };
        let joined = flights.join(&data, digest(1), 1, None, at(0), slow);
        assert_eq!(joined, Joined::Asks);
        flights.join(&data, digest(1), 3, Some(mailbox), at(0), slow);
        let joined = flights.join(&data, digest(2), 2, None, at(1), quick);
        assert_eq!(joined, Joined::Asks);
        assert_eq!(flights.land(&data, digest(1), 1), [mailbox]);
        // The same question is put again rather than waited for so long, and then wakes all.
        flights.join(&data, digest(1), 1, None, at(2), slow);
        flights.join(&data, digest(1), 3, Some(mailbox), at(2), slow);
        let joined = flights.join(&data, digest(1), 2, None, at(3), quick);
        assert_eq!(joined, Joined::Asks);
        assert_eq!(flights.land(&data, digest(1), 2), [mailbox]);
    }

    #[test]
    fn the_first_asks_and_the_others_are_woken_once_each() {
        let data = Memory::default();
        assert_eq!(join(&data, 1, 1, 0), Joined::Asks);
        for _ in 0..2 {
            for vm in [2, 3, 1] {
                assert_eq!(join(&data, 1, vm, 50), Joined::Waits { until: 100 });
            }
        }
        assert_eq!(join(&data, 2, 2, 50), Joined::Asks, "another application");
        assert_eq!(land(&data, 1, 1), [2, 3, 1].map(mailbox));
        assert_eq!(land(&data, 1, 1), []);
        assert_eq!(join(&data, 1, 2, 60), Joined::Asks);
    }

    #[test]
    fn who_has_no_mailbox_is_told_and_not_woken() {
        let data = Memory::default();
        join(&data, 1, 1, 0);
        let joined = Flights::default().join(&data, digest(1), 2, None, at(0), 100);
        assert_eq!(joined, Joined::Waits { until: 100 });
        assert_eq!(land(&data, 1, 1), []);
    }

    #[test]
    fn after_the_deadline_one_takes_over_and_wakes_those_who_waited() {
        let data = Memory::default();
        join(&data, 1, 1, 0);
        for vm in [2, 3] {
            join(&data, 1, vm, 10);
        }
        assert_eq!(join(&data, 1, 2, 99), Joined::Waits { until: 100 });
        assert_eq!(join(&data, 1, 2, 100), Joined::Asks);
        assert_eq!(join(&data, 1, 3, 100), Joined::Waits { until: 200 });
        assert_eq!(land(&data, 1, 1), [], "no longer its question");
        assert_eq!(land(&data, 1, 2), [2, 3].map(mailbox));
    }

    #[test]
    fn a_lost_race_is_run_again() {
        let data = Memory::default();
        data.lose_next(3);
        assert_eq!(join(&data, 1, 1, 0), Joined::Asks);
        data.lose_next(3);
        assert_eq!(join(&data, 1, 2, 0), Joined::Waits { until: 100 });
        data.lose_next(3);
        assert_eq!(land(&data, 1, 1), [mailbox(2)]);
    }

    #[test]
    fn with_no_room_or_no_shared_data_everybody_asks_alone() {
        let data = Memory::default();
        for application in 0..8 {
            assert_eq!(join(&data, application, 1, 0), Joined::Asks);
        }
        assert_eq!(join(&data, 8, 1, 99), Joined::Alone);
        assert_eq!(join(&data, 8, 1, 100), Joined::Asks, "theirs are over");
        data.lose_next(u32::MAX);
        assert_eq!(join(&data, 9, 1, 100), Joined::Alone);
    }

    #[test]
    fn a_flood_of_questions_takes_no_more_than_its_keys_and_a_few_hundred_bytes_each() {
        let data = Memory::default();
        let mut flights = Flights::default();
        let mut value = Vec::new();
        for number in 0..20_000_u32 {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            flights.join(
                &data,
                Digest(bytes),
                1,
                None,
                at(u64::from(number) / 100),
                100,
            );
        }
        assert_eq!(data.keys(), 256);
        data.get(Key::new(KIND, 0, 7).as_bytes(), &mut value)
            .unwrap();
        assert!(value.len() < 300, "{}", value.len());
    }

    #[test]
    fn no_more_wait_for_one_flight_than_are_woken() {
        let data = Memory::default();
        join(&data, 1, 0, 0);
        for vm in 1..=128 {
            assert_eq!(join(&data, 1, vm, 0), Joined::Waits { until: 100 }, "{vm}");
        }
        assert_eq!(join(&data, 1, 129, 0), Joined::Alone);
        assert_eq!(land(&data, 1, 0).len(), 128);
    }

    #[test]
    fn a_flight_that_nobody_can_have_begun_is_taken_over() {
        let data = Memory::default();
        join(&data, 1, 1, 1_000_000);
        assert_eq!(join(&data, 1, 2, 0), Joined::Asks);
    }

    #[test]
    fn bytes_that_are_no_flights_are_none() {
        let mut whole = MAGIC.to_vec();
        let flight = Flight {
            digest: digest(1),
            asker: 1,
            until: 100,
            waiting: vec![mailbox(2), mailbox(3)],
        };
        encode(&[flight], &mut whole);
        for length in 0..whole.len() {
            let mut flights = Vec::new();
            decode(&whole[..length], &mut flights);
            assert_eq!(flights, [], "cut at {length}");
        }
        let data = Memory::default();
        let key = Key::new(KIND, 0, 0);
        data.set(key.as_bytes(), &[0xff; 4_000], Token::OVERWRITE)
            .unwrap();
        assert_eq!(join(&data, 1, 1, 0), Joined::Asks);
        assert_eq!(join(&data, 1, 2, 0), Joined::Waits { until: 100 });
    }

    #[test]
    fn a_message_survives_its_queue_and_nothing_else_is_one() {
        let landings = [
            Landing::Remembered,
            Landing::Uncached,
            Landing::Denied(Denial::UserKeyInvalid),
            Landing::Denied(Denial::Other),
            Landing::Failed,
            Landing::Misconfigured,
            Landing::Contended,
            Landing::OverBudget,
            Landing::Doubtful,
        ];
        for landing in landings {
            let message = Message {
                owner: 7,
                digest: digest(1),
                landing,
            };
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message));
            for length in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..length]), None);
            }
            assert_eq!(Message::decode(&[&bytes[..], b"x"].concat()), None);
        }
        let mut bytes = Message {
            owner: 7,
            digest: digest(1),
            landing: Landing::Denied(Denial::Other),
        }
        .encode();
        *bytes.last_mut().unwrap() = 0;
        assert_eq!(Message::decode(&bytes), None, "no such denial");
    }
}
