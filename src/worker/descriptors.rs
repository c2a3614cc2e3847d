//! The second socket of a worker, handed to it over the first one before anything else is sent there.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

const SPACE: usize = cmsg_space!(ScmRights(1));

/// Sends a descriptor.
///
/// # Errors
/// When it cannot be sent.
pub(super) fn send(socket: impl AsFd, descriptor: impl AsFd) -> io::Result<()> {
    let (mut space, descriptors) = ([MaybeUninit::uninit(); SPACE], [descriptor.as_fd()]);
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    // Some byte must go with it; a message without the descriptor would be refused by the other side.
    sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// Receives what [`send`] sent.
///
/// # Errors
/// `InvalidData` when that does not come first.
pub(super) fn receive(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let received = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the service handed over no socket"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_other_side_gets_the_descriptor_and_the_connection_goes_on_behind_it() {
        let (mut one, mut other) = UnixStream::pair().expect("a pair");
        let (second, mut end) = UnixStream::pair().expect("a pair");
        send(&one, second).expect("sent");
        one.write_all(b"next").expect("written");
        let received = receive(&other).expect("received");
        let mut next = [0; 4];
        other.read_exact(&mut next).expect("what came after");
        assert_eq!(&next, b"next");
        UnixStream::from(received).write_all(b"x").expect("written");
        assert_eq!(end.read(&mut next).expect("read"), 1);
        drop(one);
        assert_eq!(receive(&other).expect_err("none").kind(), io::ErrorKind::InvalidData);
    }
}
