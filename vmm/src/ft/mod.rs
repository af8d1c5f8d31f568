//! Fault tolerance: what makes two virtual machines one.
//!
//! Nothing in here does I/O, starts a thread or reads a clock: every time is a `now` in nanoseconds
//! on whatever monotonic clock the caller holds, every effect is something the caller is asked to
//! do. That is why the simulator drives exactly the code that ships.
//!
//! | module | answers |
//! |---|---|
//! | [`vm`] | what a machine must offer to be kept in lockstep |
//! | [`log`] | what a log entry says, and how it is written and read |
//! | [`recorder`] | primary: how an event becomes an entry and reaches the machine |
//! | [`gate`] | primary: when an output may leave (the output rule, paper 2.2) |
//! | [`throttle`] | primary: how much it slows down for a backup that lags (paper 3.2) |
//! | [`replayer`] | backup: how entries become the same execution, and how that is checked |
//! | [`shadow`] | backup: frames that it saw on the network and the log does not have |
//! | [`detector`] | both: when the peer is taken for dead (paper 2.3) |
//! | [`disk`] | what a guest asks of a disk, in which order it is done, and what is held |
//! | [`arbiter`] | both: who of the two goes on (paper 2.3) |
//! | [`primary`], [`backup`] | the two roles, as state machines over all of the above |
//! | [`announce`] | the frame that tells switches where the MAC lives now |

pub mod announce;
pub mod arbiter;
pub mod backup;
pub mod detector;
pub mod disk;
pub mod gate;
pub mod log;
pub mod primary;
pub mod recorder;
pub mod replayer;
pub mod shadow;
#[cfg(test)]
pub(crate) mod testing;
pub mod throttle;
pub mod times;
pub mod vm;
