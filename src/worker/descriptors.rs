//! The sockets of a worker's lanes, handed to it over its first one before anything else is sent there.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::limits::WORKER_LANES;

const SPACE: usize = cmsg_space!(ScmRights(WORKER_LANES));

/// Sends at most [`WORKER_LANES`] descriptors.
///
/// # Errors
/// When they cannot be sent.
pub(super) fn send(socket: impl AsFd, descriptors: &[OwnedFd]) -> io::Result<()> {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    // Some byte must go with them.
    sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Receives what [`send`] sent.
///
/// # Errors
/// `InvalidData` when that does not come first.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors: Vec<_> = received.flatten().collect();
    if descriptors.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the service handed over no sockets"));
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_side_gets_the_descriptors_and_the_connection_goes_on_behind_them() {
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        let (lane, mut end) = UnixStream::pair().expect("a pair");
        send(&one, &[lane.into()]).expect("sent");
        one.write_all(b"next").expect("written");
        let mut received = receive(&other).expect("received");
        let mut next = [0; 4];
        other.read_exact(&mut next).expect("what came after");
        assert_eq!((&next, received.len()), (b"next", 1));
        UnixStream::from(received.remove(0)).write_all(b"x").expect("written");
        assert_eq!(end.read(&mut next).expect("read"), 1);
        drop(one);
        assert_eq!(receive(&other).expect_err("none").kind(), io::ErrorKind::InvalidData);
    }
}
