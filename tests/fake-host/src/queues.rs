//! Shared queues: how one worker wakes another. Apart because a queue outlives the
//! VM that registered it, and its notifications travel between threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Status;

/// The queues of one process. They are never deleted, hold any number of messages,
/// and notify whoever registered the name last.
///
/// Source: `SharedQueue` of proxy-wasm-cpp-host. Tokens start at 1.
#[derive(Default)]
pub(crate) struct Queues(Mutex<State>);

#[derive(Default)]
struct State {
    tokens: BTreeMap<Vec<u8>, u32>,
    queues: BTreeMap<u32, Queue>,
    notifications: BTreeMap<usize, VecDeque<Notification>>,
}

struct Queue {
    worker: usize,
    root: u32,
    messages: VecDeque<Vec<u8>>,
}

/// A message lies in queue `token`, for root context `root` of the worker it was posted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    pub(crate) root: u32,
    pub(crate) token: u32,
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of `name`. Messages that already wait in it stay.
    pub(crate) fn register(&self, name: &[u8], worker: usize, root: u32) -> u32 {
        let mut state = self.lock();
        let next = u32::try_from(state.tokens.len() + 1).expect("few queues");
        let token = *state.tokens.entry(name.to_vec()).or_insert(next);
        let queue = state.queues.entry(token).or_insert_with(|| Queue {
            worker,
            root,
            messages: VecDeque::new(),
        });
        queue.worker = worker;
        queue.root = root;
        token
    }

    pub(crate) fn resolve(&self, name: &[u8]) -> Result<u32, Status> {
        let state = self.lock();
        state.tokens.get(name).copied().ok_or(Status::NotFound)
    }

    pub(crate) fn enqueue(&self, token: u32, message: &[u8]) -> Result<(), Status> {
        let mut state = self.lock();
        let queue = state.queues.get_mut(&token).ok_or(Status::NotFound)?;
        queue.messages.push_back(message.to_vec());
        let (worker, root) = (queue.worker, queue.root);
        let inbox = state.notifications.entry(worker).or_default();
        inbox.push_back(Notification { root, token });
        Ok(())
    }

    pub(crate) fn dequeue(&self, token: u32) -> Result<Vec<u8>, Status> {
        let mut state = self.lock();
        let queue = state.queues.get_mut(&token).ok_or(Status::NotFound)?;
        queue.messages.pop_front().ok_or(Status::Empty)
    }

    /// The next notification posted to `worker`'s thread.
    pub(crate) fn next_notification(&self, worker: usize) -> Option<Notification> {
        let mut state = self.lock();
        state.notifications.get_mut(&worker)?.pop_front()
    }

    /// How many messages wait in all queues.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        state
            .queues
            .values()
            .map(|queue| queue.messages.len())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_token_and_its_messages_when_it_is_registered_again() {
        let queues = Queues::default();
        let token = queues.register(b"a", 0, 1);
        queues.enqueue(token, b"first").unwrap();
        assert_eq!(queues.register(b"a", 1, 7), token);
        queues.enqueue(token, b"second").unwrap();
        assert_eq!(queues.dequeue(token), Ok(b"first".to_vec()));
        assert_eq!(queues.dequeue(token), Ok(b"second".to_vec()));
        assert_eq!(queues.dequeue(token), Err(Status::Empty));
    }

    #[test]
    fn whoever_registered_last_is_notified() {
        let queues = Queues::default();
        let token = queues.register(b"a", 0, 1);
        queues.register(b"a", 1, 7);
        queues.enqueue(token, b"message").unwrap();
        assert_eq!(queues.next_notification(0), None);
        let notification = Notification { root: 7, token };
        assert_eq!(queues.next_notification(1), Some(notification));
        assert_eq!(queues.next_notification(1), None);
    }

    #[test]
    fn names_and_tokens_that_nobody_registered_are_not_found() {
        let queues = Queues::default();
        assert_eq!(queues.resolve(b"a"), Err(Status::NotFound));
        assert_eq!(queues.enqueue(1, b""), Err(Status::NotFound));
        assert_eq!(queues.dequeue(1), Err(Status::NotFound));
        let a = queues.register(b"a", 0, 1);
        let b = queues.register(b"b", 0, 1);
        assert_ne!(a, b);
        assert_eq!(queues.resolve(b"b"), Ok(b));
    }
}
