//! What model clients and the model machine say to each other.

/// How many clients there are.
pub const CLIENTS: usize = 3;

/// How many counters the server keeps.
pub const KEYS: usize = 2;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// One more; answers with the new value.
    Add,
    /// Answers with the value.
    Read,
}

/// A request, 8 bytes: client, operation, key, a zero, and the client's number of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Who asks, below [`CLIENTS`].
    pub client: u8,
    /// For what.
    pub operation: Operation,
    /// Of which counter, below [`KEYS`].
    pub key: u8,
    /// Counts each client's requests from 1; a repeated request has the same.
    pub id: u32,
}

impl Request {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; 8] {
        let [a, b, c, d] = self.id.to_le_bytes();
        [
            self.client,
            u8::from(self.operation == Operation::Read),
            self.key,
            0,
            a,
            b,
            c,
            d,
        ]
    }

    /// Reads one, if it is one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let &[client, operation, key, 0, a, b, c, d] = bytes else {
            return None;
        };
        let operation = match operation {
            0 => Operation::Add,
            1 => Operation::Read,
            _ => return None,
        };
        let known = usize::from(client) < CLIENTS && usize::from(key) < KEYS;
        known.then_some(Self {
            client,
            operation,
            key,
            id: u32::from_le_bytes([a, b, c, d]),
        })
    }
}

/// An answer, 13 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// To whom.
    pub client: u8,
    /// To which request.
    pub id: u32,
    /// The counter's value.
    pub value: u64,
}

impl Response {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; 13] {
        let mut bytes = [0; 13];
        bytes[0] = self.client;
        bytes[1..5].copy_from_slice(&self.id.to_le_bytes());
        bytes[5..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// Reads one, if it is one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 13] = bytes.try_into().ok()?;
        let (id, value) = bytes[1..].split_first_chunk::<4>()?;
        Some(Self {
            client: bytes[0],
            id: u32::from_le_bytes(*id),
            value: u64::from_le_bytes(value.try_into().ok()?),
        })
    }
}
