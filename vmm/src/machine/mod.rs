//! The deterministic machine: guest memory, vCPU engine, devices, interrupt controller, virtual clock.
pub mod engine;
