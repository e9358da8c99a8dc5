//! Threads that close descriptors in whose close a program has a say.
//!
//! A program can send descriptors along with its bytes (SCM_RIGHTS). Whoever closes such a descriptor last may wait: for data
//! of a TCP connection that SO_LINGER wants delivered, for a file system of the program's own, for gigabytes to be freed. A socket in
//! which such messages are unread closes them with itself. So the worker closes none of these: it gives them to a reaper.
//!
//! From Linux 6.16 on a socket can refuse descriptors (`host/socket.rs`), and only sockets whose records are marked
//! with descriptors come here.
//!
//! What waits to be closed is an open descriptor of this process, so the limit of descriptors bounds the queue. A close
//! that hangs keeps its thread; when all [`THREADS`] hang, what comes later stays open. Of descriptors that were received no
//! more than a part of the process's limit may wait: while the reaper is [full](Reaper::is_full), messages that carry some are
//! not read, and it wakes the worker when it has room again.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll;
use rustix::process::{Resource, getrlimit};

use crate::host::places::Place;
use crate::reactor::Waker;
use vsock_virtio::starter::Starter;

/// So many closes may hang before others wait for them.
const THREADS: usize = 4;

/// Enough for close(2).
const STACK: usize = 64 * 1024;

/// How many descriptors may have been received and wait to be closed: one of so many that the process may have, and no more
/// than so many.
const PART: u64 = 8;
const MOST: usize = 4096;

/// Closes descriptors on threads of its own, which end after the last of its clones.
#[derive(Clone, Debug)]
pub(crate) struct Reaper(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    queue: Arc<Queue>,
    /// Where sockets are listened to until they are given away.
    epoll: Arc<OwnedFd>,
    /// So many received descriptors may wait.
    most: usize,
    /// Starts its threads.
    starter: Starter,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    news: Condvar,
    waker: Waker,
    /// The worker has been woken as there is room.
    has_room: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    tasks: VecDeque<Task>,
    /// Descriptors that were received and are not closed yet.
    received: usize,
    threads: usize,
    /// Of these, how many have nothing to do.
    idle: usize,
    /// When so few received ones are left, the worker is woken, which has found the reaper full.
    wake_at: Option<usize>,
    is_over: bool,
}

#[derive(Debug)]
enum Task {
    Socket(OwnedFd, Option<Place>),
    Received(Vec<OwnedFd>),
}

impl Reaper {
    /// One that has no thread yet, for sockets that `epoll` listens to, and the worker that does.
    pub(crate) fn new(epoll: Arc<OwnedFd>, waker: Waker, starter: Starter) -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(limit / PART).unwrap_or(usize::MAX).min(MOST);
        Self::with(epoll, waker, most, starter)
    }

    fn with(epoll: Arc<OwnedFd>, waker: Waker, most: usize, starter: Starter) -> Self {
        let (state, news, has_room) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        let queue = Queue { state, news, waker, has_room };
        Self(Arc::new(Owner { queue: Arc::new(queue), epoll, most, starter }))
    }

    /// Closes a socket, of which nothing more is heard from now on; then it is nobody's.
    pub(crate) fn close(&self, socket: OwnedFd, place: Option<Place>) {
        // It may never have been listened to.
        let _ = epoll::delete(&*self.0.epoll, &socket);
        self.give(Task::Socket(socket, place), 0);
    }

    /// Closes descriptors that have come with a message.
    pub(crate) fn close_received(&self, descriptors: Vec<OwnedFd>) {
        let count = descriptors.len();
        if count > 0 {
            self.give(Task::Received(descriptors), count);
        }
    }

    /// No more descriptors are to be received.
    pub(crate) fn is_full(&self) -> bool {
        self.0.queue.lock().received >= self.0.most
    }

    /// Wakes the worker when half of what may wait is closed, if it is full.
    pub(crate) fn await_room(&self) {
        let mut state = self.0.queue.lock();
        state.wake_at = Some(self.0.most / 2);
        self.0.queue.tell_of_room(&mut state);
    }

    /// Whether the worker was woken for that; once.
    pub(crate) fn take_has_room(&self) -> bool {
        let has_room = &self.0.queue.has_room;
        has_room.load(Ordering::Relaxed) && has_room.swap(false, Ordering::Relaxed)
    }

    fn give(&self, task: Task, received: usize) {
        let queue = &self.0.queue;
        let mut state = queue.lock();
        state.tasks.push_back(task);
        state.received += received;
        // A thread counts as idle until it has been woken up.
        if state.tasks.len() <= state.idle {
            queue.news.notify_one();
        } else if state.threads < THREADS {
            // Where no thread can be had, the next task asks again.
            state.threads += usize::from(self.0.start());
        }
    }
}

impl Owner {
    /// Starts a thread; whether there is one.
    fn start(&self) -> bool {
        let queue = Arc::clone(&self.queue);
        let thread = std::thread::Builder::new().name("vsock-reaper".to_owned()).stack_size(STACK);
        self.starter.start(thread, move || queue.run()).is_ok()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.queue.lock().is_over = true;
        self.queue.news.notify_all();
    }
}

impl Queue {
    /// No thread holds the lock while it closes.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(task) = self.next() {
            match task {
                Task::Socket(socket, place) => {
                    drop(socket);
                    drop(place);
                }
                Task::Received(descriptors) => {
                    for descriptor in descriptors {
                        drop(descriptor);
                        let mut state = self.lock();
                        state.received -= 1;
                        self.tell_of_room(&mut state);
                    }
                }
            }
        }
    }

    fn tell_of_room(&self, state: &mut State) {
        if state.wake_at.is_some_and(|few| state.received <= few) {
            state.wake_at = None;
            self.has_room.store(true, Ordering::Relaxed);
            self.waker.wake();
        }
    }

    /// Waits for something to close; `None`: nothing will come.
    fn next(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.tasks.pop_front() {
                return Some(task);
            }
            if state.is_over {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use vsock_sandbox::{Profile, Sandbox};

    use super::*;
    use crate::reactor::Sources;

    /// A descriptor whose last close waits until its peer is closed.
    pub(crate) fn lingering() -> (OwnedFd, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 65536]).is_ok() {}
        stream.set_nonblocking(false).unwrap();
        let patience = Some(Duration::from_secs(3600));
        rustix::net::sockopt::set_socket_linger(&stream, patience).unwrap();
        (stream.into(), peer)
    }

    fn starter() -> Starter {
        Starter::new(Sandbox::default(), Profile::Helper, "starter").unwrap()
    }

    /// One without a node.
    pub(crate) fn reaper() -> Reaper {
        Sources::new().unwrap().reaper(starter())
    }

    /// One that is full with so many descriptors.
    pub(crate) fn reaper_for(most: usize) -> Reaper {
        let (starter, sources) = (starter(), Sources::new().unwrap());
        let Owner { epoll, queue, .. } = &*sources.reaper(starter.clone()).0;
        Reaper::with(Arc::clone(epoll), queue.waker.clone(), most, starter)
    }

    #[test]
    fn sockets_are_closed_while_a_close_hangs() {
        let reaper = reaper_for(MOST);
        let (descriptor, peer) = lingering();
        reaper.close_received(vec![descriptor]);
        for _ in 0..3 * THREADS {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            reaper.close(ours.into(), None);
            assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(reaper.0.queue.lock().received, 1);
        drop(peer);
    }

    #[test]
    fn socket_behind_a_close_that_hangs_is_closed_by_another_thread() {
        let reaper = reaper_for(MOST);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reaper.close(ours.into(), None);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while reaper.0.queue.lock().idle == 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        let (descriptor, peer) = lingering();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reaper.close_received(vec![descriptor]);
        reaper.close(ours.into(), None);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        drop(peer);
    }

    #[test]
    fn reaper_whose_threads_all_hang_is_full_until_they_do_not() {
        let reaper = reaper_for(THREADS + 1);
        let (descriptors, peers): (Vec<_>, Vec<_>) = (0..=THREADS).map(|_| lingering()).unzip();
        for descriptor in descriptors {
            assert!(!reaper.is_full());
            reaper.close_received(vec![descriptor]);
        }
        assert!(reaper.is_full());
        reaper.await_room();
        assert!(!reaper.take_has_room());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reaper.close(ours.into(), None);
        assert_eq!(reaper.0.queue.lock().threads, THREADS);
        drop(peers);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "it is closed after all");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !reaper.take_has_room() {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(!reaper.is_full() && !reaper.take_has_room());
    }

    #[test]
    fn threads_close_what_waits_and_end_with_their_owner() {
        let reaper = reaper_for(MOST);
        let queue = Arc::clone(&reaper.0.queue);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        reaper.close(ours.into(), None);
        drop(reaper);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while queue.lock().threads > 0 {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
