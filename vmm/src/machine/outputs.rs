//! What the machine says, until the caller takes it, in buffers that come back.

use std::collections::VecDeque;

use crate::ft::vm::{Output, OutputKind};

/// Largest Ethernet frame that passes in either direction, in bytes.
pub const FRAME_LIMIT: usize = 64 << 10;
/// Returned buffers kept for the next outputs. More in flight are allocated, and freed on return.
const POOL_BUFFERS: usize = 256;

/// Outputs in the order in which they were said, and buffers for the next.
#[derive(Debug, Default)]
pub struct Outputs {
    waiting: VecDeque<Output>,
    pool: Vec<Vec<u8>>,
}

impl Outputs {
    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.pool.pop().unwrap_or_default()
    }

    /// Says something.
    pub fn push(&mut self, kind: OutputKind, bytes: Vec<u8>) {
        self.waiting.push_back(Output { kind, bytes });
    }

    /// The oldest output not yet taken.
    pub fn pop(&mut self) -> Option<Output> {
        self.waiting.pop_front()
    }

    /// Whether the caller has outputs to take.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a buffer back.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.pool.len() < POOL_BUFFERS && buffer.capacity() <= FRAME_LIMIT {
            buffer.clear();
            self.pool.push(buffer);
        }
    }
}
