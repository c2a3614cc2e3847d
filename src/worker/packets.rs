//! [`Packets`]: the second socket between a service and a worker, for messages that are short, as most are. Each is one packet, which
//! any thread may send, and any that is free receives as a whole: a call is received, run and answered by one thread, and under
//! load none has to be woken for it.
//!
//! ```text
//! | head bytes (u32 LE) | head: Postcard | body: raw bytes |
//! ```

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixDatagram;

use super::wire;
use crate::limits::WORKER_PACKET_BYTES_MAX;

/// Bytes of the length of the head.
const LENGTH: usize = size_of::<u32>();

/// An end of such a socket.
#[derive(Debug)]
pub(super) struct Packets<S = OwnedFd>(S);

/// What became of a message.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It was sent.
    Whole,
    /// Not now, or never: it is too long, or what was sent before it was not received yet.
    Not,
}

/// What a thread receives packets into.
pub(super) struct PacketBuffer(Vec<u8>);

impl PacketBuffer {
    pub(super) fn new() -> PacketBuffer {
        PacketBuffer(vec![0; WORKER_PACKET_BYTES_MAX])
    }
}

impl From<OwnedFd> for Packets {
    fn from(socket: OwnedFd) -> Packets {
        Packets(socket)
    }
}

impl Packets {
    /// Both ends: that of the service, which waits for nothing, and that of the worker.
    ///
    /// # Errors
    /// When the system has no descriptors to spare.
    pub(super) fn pair() -> io::Result<(Packets, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Packets(ours), theirs))
    }

    /// That of the service as its runtime watches it: as a socket for datagrams, which takes the same calls.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(super) fn watched(self) -> io::Result<Packets<UnixDatagram>> {
        Ok(Packets(UnixDatagram::from_std(self.0.into())?))
    }
}

impl Packets<UnixDatagram> {
    /// Receives the next message with its body; `None` at the end.
    ///
    /// # Errors
    /// As [`receive`](Packets::receive).
    pub(super) async fn next<T: DeserializeOwned>(&self, buffer: &mut PacketBuffer) -> io::Result<Option<(T, Bytes)>> {
        // However many there are, what else its task looks after gets its turn.
        tokio::task::consume_budget().await;
        loop {
            match self.0.try_io(Interest::READABLE, || self.receive(buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.0.readable().await?,
                received => return received,
            }
        }
    }
}

impl<S: AsFd> Packets<S> {
    /// Sends a message whose body is the two pieces.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn send<T: Serialize>(&self, message: &T, [one, other]: [&[u8]; 2]) -> io::Result<Sent> {
        if one.len() + other.len() > WORKER_PACKET_BYTES_MAX {
            return Ok(Sent::Not);
        }
        let mut head = wire::head(message, LENGTH)?;
        if head.len() + one.len() + other.len() > WORKER_PACKET_BYTES_MAX {
            return Ok(Sent::Not);
        }
        let length = (head.len() - LENGTH) as u32;
        head[..LENGTH].copy_from_slice(&length.to_le_bytes());
        let (pieces, mut nothing) = ([&head, one, other].map(IoSlice::new), SendAncillaryBuffer::default());
        loop {
            return match sendmsg(&self.0, &pieces, &mut nothing, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(_) => Ok(Sent::Whole),
                Err(Errno::INTR) => continue,
                // The system has no room for one that is so long, or for one more.
                Err(Errno::AGAIN | Errno::MSGSIZE | Errno::NOBUFS) => Ok(Sent::Not),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Receives a message with its body; `None` at the end.
    ///
    /// # Errors
    /// `WouldBlock` at the end of the service; when the connection is broken, or the packet is no message.
    pub(super) fn receive<T: DeserializeOwned>(
        &self,
        PacketBuffer(buffer): &mut PacketBuffer,
    ) -> io::Result<Option<(T, Bytes)>> {
        let received = loop {
            match recv(&self.0, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received?.1,
            }
        };
        if received == 0 {
            return Ok(None);
        }
        let packet = buffer.get(..received).unwrap_or_default();
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "a packet that is no message");
        let (length, rest) = packet.split_first_chunk().ok_or_else(invalid)?;
        let (head, body) = rest.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or_else(invalid)?;
        Ok(Some((wire::message(head)?, Bytes::copy_from_slice(body))))
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::send;

    use super::*;
    use crate::worker::wire::FromWorker;

    fn pair() -> (Packets, Packets) {
        let (ours, theirs) = Packets::pair().expect("a pair");
        (ours, theirs.into())
    }

    #[test]
    fn a_message_is_received_as_it_was_sent_and_one_that_is_too_long_is_not_sent() {
        let (ours, theirs) = pair();
        let (message, mut buffer) = (FromWorker::Piece { id: 3 }, PacketBuffer::new());
        let head = wire::head(&message, LENGTH).expect("a head").len();
        for bytes in [0, 1, WORKER_PACKET_BYTES_MAX - head] {
            let body = vec![7; bytes];
            let (one, other) = body.split_at(bytes / 3);
            assert_eq!(theirs.send(&message, [one, other]).expect("a connection"), Sent::Whole);
            let (message, received) = ours.receive::<FromWorker>(&mut buffer).expect("a packet").expect("not the end");
            assert!(matches!(message, FromWorker::Piece { id: 3 }) && received == body, "{bytes}");
        }
        let long = vec![7; WORKER_PACKET_BYTES_MAX - head + 1];
        assert_eq!(theirs.send(&message, [&long, &[]]).expect("a connection"), Sent::Not);
        drop(theirs);
        assert!(ours.receive::<FromWorker>(&mut buffer).expect("the end").is_none());
    }

    #[test]
    fn the_service_waits_for_nothing_and_packets_that_are_not_messages_are_refused() {
        let (ours, theirs) = pair();
        let mut buffer = PacketBuffer::new();
        let empty = ours.receive::<FromWorker>(&mut buffer).expect_err("nothing was sent");
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        let body = vec![7; WORKER_PACKET_BYTES_MAX / 2];
        let sent =
            (0..1000).take_while(|_| ours.send(&FromWorker::Pong, [&body, &[]]).expect("a connection") == Sent::Whole);
        assert!((1..1000).contains(&sent.count()));
        for packet in [&b"abc"[..], &[9, 0, 0, 0, 1], &[1, 0, 0, 0, 99]] {
            send(&theirs.0, packet, SendFlags::empty()).expect("sent");
            let error = ours.receive::<FromWorker>(&mut buffer).expect_err("no message");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
