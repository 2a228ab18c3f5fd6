//! TLS: the session that dialogues may run inside of, our own hellos that ask for one version at a time, and certificates.

pub(super) mod certificate;
pub(super) mod hello;
pub(super) mod layer;
