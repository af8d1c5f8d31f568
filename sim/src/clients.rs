//! The clients: each asks one thing after the other, repeats what is not answered, and remembers
//! every answer.
//!
//! The server's counters only grow, by one for each request to add. So a history of them is
//! linearizable (Herlihy, Wing 1990) if each answer is at least what had been answered before it was
//! asked, strictly more for an addition, no two additions answer the same, and none answers more than
//! had been asked for. That is checked at each answer.

use crate::plan::{MS, US};
use crate::rng::Rng;
use crate::violation::Rule;
use crate::wire::{CLIENTS, KEYS, Operation, Request, Response};

/// A client's question that has no answer yet.
#[derive(Debug, Clone, Copy)]
struct Open {
    request: Request,
    /// Highest value anybody had seen when it was first asked.
    floor: u64,
    ask_again: u64,
}

#[derive(Debug, Default)]
struct Client {
    asked: u32,
    open: Option<Open>,
    next_at: u64,
    /// The answer to each request, from the first.
    answers: Vec<u64>,
}

/// All of them.
#[derive(Debug)]
pub struct Clients {
    clients: [Client; CLIENTS],
    requests: u32,
    /// Highest value answered, by counter.
    seen: [u64; KEYS],
    /// Additions asked for, by counter.
    additions: [u64; KEYS],
    /// Values that additions were answered with, by counter.
    taken: [Vec<bool>; KEYS],
}

/// How long a client waits before it repeats itself.
const PATIENCE: u64 = 3 * MS;

impl Clients {
    /// Clients that make `requests` each.
    #[must_use]
    pub fn new(requests: u32) -> Self {
        Self {
            clients: Default::default(),
            requests,
            seen: [0; KEYS],
            additions: [0; KEYS],
            taken: Default::default(),
        }
    }

    /// When one of them has something to say.
    #[must_use]
    pub fn wake_at(&self) -> u64 {
        let wake = |client: &Client| match client.open {
            Some(open) => open.ask_again,
            None if client.asked < self.requests => client.next_at,
            None => u64::MAX,
        };
        self.clients.iter().map(wake).min().unwrap_or(u64::MAX)
    }

    /// What client `client` sends at `now`, if anything.
    pub fn ask(&mut self, client: usize, now: u64, rng: &mut Rng) -> Option<Request> {
        let me = &mut self.clients[client];
        if let Some(open) = &mut me.open {
            if now < open.ask_again {
                return None;
            }
            open.ask_again = now + PATIENCE;
            return Some(open.request);
        }
        if me.asked == self.requests || now < me.next_at {
            return None;
        }
        me.asked += 1;
        let operation = if rng.chance(300) {
            Operation::Read
        } else {
            Operation::Add
        };
        let key = rng.below(KEYS as u64) as u8;
        self.additions[usize::from(key)] += u64::from(operation == Operation::Add);
        let request = Request {
            client: client as u8,
            operation,
            key,
            id: me.asked,
        };
        let floor = self.seen[usize::from(key)];
        me.open = Some(Open {
            request,
            floor,
            ask_again: now + PATIENCE,
        });
        Some(request)
    }

    /// A response arrived.
    ///
    /// # Errors
    /// It contradicts what was answered before.
    pub fn answered(
        &mut self,
        response: Response,
        now: u64,
        rng: &mut Rng,
    ) -> Result<(), (Rule, String)> {
        let broken = |detail: String| Err((Rule::Durability, detail));
        let me = &mut self.clients[usize::from(response.client)];
        let Response { client, id, value } = response;
        let Some(open) = me.open.filter(|open| open.request.id == id) else {
            // A duplicate, of an answer that is already known.
            return match me.answers.get((id as usize).wrapping_sub(1)) {
                Some(known) if *known == value => Ok(()),
                known => broken(format!(
                    "client {client}, request {id}: answered {known:?} before, {value} now"
                )),
            };
        };
        let key = usize::from(open.request.key);
        let adds = open.request.operation == Operation::Add;
        let least = open.floor + u64::from(adds);
        let most = self.additions[key];
        if value < least || value > most {
            return broken(format!(
                "client {client}, request {id} ({:?}): answered {value}, expected {least} to {most}",
                open.request.operation
            ));
        }
        if adds {
            let taken = &mut self.taken[key];
            taken.resize(taken.len().max(value as usize + 1), false);
            if std::mem::replace(&mut taken[value as usize], true) {
                return broken(format!(
                    "client {client}, request {id}: answered {value}, and so was another addition"
                ));
            }
        }
        self.seen[key] = self.seen[key].max(value);
        me.open = None;
        me.answers.push(value);
        me.next_at = now + rng.below(400) * US;
        Ok(())
    }

    /// Whether every request is answered.
    #[must_use]
    pub fn done(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.open.is_none() && client.asked == self.requests)
    }

    /// Requests answered and requests to be made.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        let answered = self.clients.iter().map(|client| client.answers.len()).sum();
        (answered, CLIENTS * self.requests as usize)
    }

    /// What counter `key` must hold once everything is answered.
    #[must_use]
    pub const fn total(&self, key: usize) -> u64 {
        self.additions[key]
    }
}
