//! The door to the world: tap, virtual switch, network namespaces, arbiter file.
