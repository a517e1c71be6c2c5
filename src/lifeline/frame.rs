//! The messages between the two ends of a lifeline. Every frame has the same length, so that reading a frame needs no
//! state, and a listener with another protocol is recognized by its first bytes.

use crate::protocol::identity::NodeId;

/// The length of a frame in bytes.
pub(super) const FRAME_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"LRDZ";
const VERSION: u8 = 1;

/// One message on a lifeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The meaning of the message.
    pub(super) kind: Kind,
    /// The random name of the world that it refers to.
    pub(super) world: u64,
    /// The node that sends it.
    pub(super) from: NodeId,
    /// The node that the sender expects at the other end.
    pub(super) to: NodeId,
}

/// The meaning of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The sender is in this world, and keeps the connection open. The dialer sends it first in each world, and the
    /// listener responds.
    Greeting,
    /// The sender asks which node listens here, and keeps nothing open. The response is a greeting.
    Probe,
    /// The sender has left the world in an orderly way: the end of this connection is no sign of its death.
    Goodbye,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::Greeting => 1,
            Self::Probe => 2,
            Self::Goodbye => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Greeting, Self::Probe, Self::Goodbye].into_iter().find(|kind| kind.code() == code)
    }
}

impl Frame {
    /// The bytes of the frame: the magic, the version, the kind, two zero bytes, then the world and both IDs in network
    /// order.
    pub(super) fn encode(&self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind.code();
        bytes[8..16].copy_from_slice(&self.world.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.from.first_lease().to_be_bytes());
        bytes[24..].copy_from_slice(&self.to.first_lease().to_be_bytes());
        bytes
    }

    /// The answer of a node to this frame.
    pub(super) fn answer(&self, from: NodeId, kind: Kind) -> Self {
        Self { kind, world: self.world, from, to: self.from }
    }

    /// The frame in these bytes. `None` if they are of another protocol, or of an unknown version.
    pub(super) fn decode(bytes: &[u8; FRAME_BYTES]) -> Option<Self> {
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(number)
        };
        let node = |at: usize| NodeId::from_number(number(at));
        let is_known = bytes[..4] == MAGIC && bytes[4] == VERSION;
        let kind = Kind::from_code(bytes[5]).filter(|_| is_known)?;
        Some(Self { kind, world: number(8), from: node(16)?, to: node(24)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind) -> Frame {
        Frame { kind, world: u64::MAX - 7, from: NodeId::from_random(2), to: NodeId::from_random(u64::MAX) }
    }

    #[test]
    fn frame_is_read_as_it_was_written() {
        for kind in [Kind::Greeting, Kind::Probe, Kind::Goodbye] {
            assert_eq!(Frame::decode(&frame(kind).encode()), Some(frame(kind)));
        }
    }

    #[test]
    fn bytes_of_another_protocol_or_version_are_no_frame() {
        let good = frame(Kind::Greeting).encode();
        for (at, byte) in [(0, b'H'), (3, 0), (4, VERSION + 1), (5, 0), (5, 4), (16, 0x80)] {
            let mut bytes = good;
            bytes[at] = byte;
            assert_eq!(Frame::decode(&bytes), None, "byte {at}");
        }
        let mut without_id = good;
        without_id[24..].fill(0);
        assert_eq!(Frame::decode(&without_id), None, "0 is no node");
    }
}
