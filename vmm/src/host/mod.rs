//! The door to the world: tap, virtual switch, network namespaces, arbiter file, disks, status
//! socket, entropy, snapshots. All of a virtual machine's contact with its host, but for the channel, is in here.

pub mod arbiter_file;
pub mod disk;
pub mod disk_template;
pub mod entropy;
pub mod namespaces;
pub mod port;
pub mod snapshot_file;
pub mod status_socket;
pub mod switch;
pub mod tap;
#[cfg(test)]
pub(crate) mod test_storage;
