//! A network of one service and many machines, in one thread and on tokio's paused clock. Its streams of bytes may be
//! delayed, held up, lost with their connection, or cut in one direction only. All random choices depend on one seed.
//!
//! To programs it behaves like TCP. Bytes keep their order and are sent again until they arrive, so a cut delays them
//! but never drops them. A peer whose process ended sends that if it can. A peer whose machine disappeared sends
//! nothing until the machine is back and something is sent to it. Names, routes, and TLS are not simulated.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future as _,
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::Duration,
};

use lattice_rdzv::server::Listener;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, mpsc},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// The maximum number of bytes in flight in one direction of a connection. A sender with more bytes waits.
const WINDOW: usize = 64 * 1024;
/// The maximum pause between two attempts to send what did not arrive.
const RESEND: u64 = 1_000;

/// The network. Clones are the same network.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// A peer that could not be reached may be reachable now.
    changed: Notify,
}

struct State {
    random: StdRng,
    began: Instant,
    /// A digest of every byte that was sent, of the time, and of the sender.
    fingerprint: u64,
    machines: BTreeMap<String, Machine>,
    pipes: BTreeMap<u64, Pipe>,
    next_pipe: u64,
    /// The server that accepts connections to the service.
    door: Option<Entrance>,
    /// Whether the machine of the service is present and connected.
    lit: bool,
    segments: usize,
    connections: usize,
}

type Entrance = mpsc::UnboundedSender<Wire>;

/// The connection between a machine and the service.
#[derive(Clone, Copy, Default)]
struct Machine {
    /// Whether nothing arrives at the service.
    mute: bool,
    /// Whether nothing arrives from the service.
    deaf: bool,
    /// A time that is added to every delay.
    slow: Duration,
    /// One segment in this number is sent again.
    loses: Option<u64>,
}

/// One direction of a connection. Its number is even if it leads to the service. The other direction has the next
/// number.
struct Pipe {
    machine: String,
    /// The segments in flight, each with the time of its arrival, unless it is held up.
    segments: VecDeque<(Option<Instant>, Segment)>,
    bytes: usize,
    last: Instant,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whether the reader is gone.
    unread: bool,
    /// Whether its end was sent.
    unwritten: bool,
    /// Whether a firewall has forgotten the connection: nothing arrives, and neither end is notified.
    forgotten: bool,
}

fn goes_to_service(pipe: u64) -> bool {
    pipe.is_multiple_of(2)
}

enum Segment {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            random: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            machines: BTreeMap::new(),
            pipes: BTreeMap::new(),
            next_pipe: 0,
            door: None,
            lit: true,
            segments: 0,
            connections: 0,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// A single number for all that was sent over it.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.state().fingerprint
    }

    /// The numbers of segments and connections.
    pub(crate) fn traffic(&self) -> (usize, usize) {
        let state = self.state();
        (state.segments, state.connections)
    }

    /// Accepts connections to the service from now on, instead of the previous server.
    pub(crate) fn listen(&self) -> Door {
        let (sender, arrivals) = mpsc::unbounded_channel();
        self.state().door = Some(sender);
        self.0.changed.notify_waiters();
        Door { arrivals }
    }

    /// Whether a server accepts connections.
    pub(crate) fn is_served(&self) -> bool {
        self.state().door.as_ref().is_some_and(|door| !door.is_closed())
    }

    /// No server accepts connections any more.
    pub(crate) fn close_door(&self) {
        self.state().door = None;
    }

    /// Sets whether the machine of the service is present. While it is not, everything that is sent to it or by it is
    /// held up, and processes on it end without notifying their peers.
    pub(crate) fn light(&self, lit: bool) {
        self.state().lit = lit;
        self.resend();
    }

    fn change(&self, machine: &str, change: impl FnOnce(&mut Machine)) {
        change(self.state().machines.entry(machine.to_owned()).or_default());
        self.resend();
    }

    /// Cuts off a machine: the direction to the service, the direction from it, or both.
    pub(crate) fn cut(&self, machine: &str, mute: bool, deaf: bool) {
        self.change(machine, |state| (state.mute, state.deaf) = (mute, deaf));
    }

    /// Adds to the delay of everything between this machine and the service.
    pub(crate) fn slow(&self, machine: &str, slow: Duration) {
        self.change(machine, |state| state.slow = slow);
    }

    /// Loses one of `one_in` segments of this machine, and sends it again later.
    pub(crate) fn lose(&self, machine: &str, one_in: Option<u64>) {
        self.change(machine, |state| state.loses = one_in);
    }

    /// Forgets all connections of this machine, without notifying either end.
    pub(crate) fn forget(&self, machine: &str) {
        for pipe in self.state().pipes.values_mut().filter(|pipe| pipe.machine == machine) {
            pipe.forgotten = true;
            pipe.segments.clear();
        }
    }

    /// Sends what was held up and can now arrive.
    fn resend(&self) {
        let mut state = self.state();
        let held: Vec<u64> = state.pipes.keys().copied().collect();
        for id in held {
            state.release(id);
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Connects this machine to the service.
    pub(crate) async fn dial(&self, machine: &str) -> io::Result<Wire> {
        loop {
            let changed = self.0.changed.notified();
            let (reached, there) = {
                let mut state = self.state();
                (state.reaches(machine, true) && state.reaches(machine, false), state.delay(machine))
            };
            if !reached {
                changed.await;
                sleep(there).await;
                continue;
            }
            sleep(there).await;
            let (connected, back) = {
                let mut state = self.state();
                if !(state.reaches(machine, true) && state.reaches(machine, false)) {
                    continue;
                }
                let back = state.delay(machine);
                (state.connect(machine, self), back)
            };
            // A wire that is not accepted is dropped here, and not above under the lock that its end needs.
            let wire = connected.and_then(|(door, theirs, ours)| door.send(theirs).ok().map(|()| ours));
            sleep(back).await;
            return wire.ok_or_else(|| io::Error::from(ErrorKind::ConnectionRefused));
        }
    }
}

impl State {
    fn reaches(&self, machine: &str, to_service: bool) -> bool {
        let Machine { mute, deaf, .. } = self.machines.get(machine).copied().unwrap_or_default();
        self.lit && !(if to_service { mute } else { deaf })
    }

    /// The delay of one segment.
    fn delay(&mut self, machine: &str) -> Duration {
        let Machine { slow, loses, .. } = self.machines.get(machine).copied().unwrap_or_default();
        let mut delay = slow + Duration::from_micros(self.random.next_u64() % 4_000);
        if loses.is_some_and(|one_in| self.random.next_u64().is_multiple_of(one_in)) {
            delay += Duration::from_millis(200 + self.random.next_u64() % RESEND);
        }
        delay
    }

    /// Adds an event to the fingerprint.
    fn note(&mut self, what: u8, pipe: u64, bytes: &[u8]) {
        let at = u64::try_from(self.began.elapsed().as_nanos()).unwrap();
        let head = [at.to_le_bytes(), pipe.to_le_bytes(), (bytes.len() as u64).to_le_bytes()].concat();
        let mut fingerprint = self.fingerprint;
        for byte in [what].iter().chain(&head).chain(bytes) {
            fingerprint = (fingerprint ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.fingerprint = fingerprint;
    }

    /// Both ends of a new connection, that of the service first, and the server that accepts it.
    fn connect(&mut self, machine: &str, network: &Network) -> Option<(Entrance, Wire, Wire)> {
        let door = self.door.clone()?;
        let first = self.next_pipe;
        self.next_pipe += 2;
        for id in [first, first + 1] {
            let pipe = Pipe {
                machine: machine.to_owned(),
                segments: VecDeque::new(),
                bytes: 0,
                last: Instant::now(),
                reader: None,
                writer: None,
                unread: false,
                unwritten: false,
                forgotten: false,
            };
            self.pipes.insert(id, pipe);
        }
        self.connections += 1;
        self.note(b'c', first, machine.as_bytes());
        let wire = |reads, writes| Wire {
            network: network.clone(),
            reads,
            writes,
            rest: Vec::new(),
            over: None,
            timer: None,
        };
        Some((door, wire(first, first + 1), wire(first + 1, first)))
    }

    fn send(&mut self, id: u64, segment: Segment) {
        let (kind, bytes): (u8, &[u8]) = match &segment {
            Segment::Bytes(bytes) => (b'b', bytes),
            Segment::End => (b'e', &[]),
            Segment::Reset => (b'r', &[]),
        };
        self.note(kind, id, bytes);
        self.segments += 1;
        let size = bytes.len();
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        if pipe.forgotten {
            // As if the bytes were in flight forever.
            pipe.bytes += size;
            return;
        }
        pipe.bytes += size;
        pipe.segments.push_back((None, segment));
        self.release(id);
    }

    /// Lets held-up segments arrive, if the connection permits it.
    fn release(&mut self, id: u64) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (machine, to_service) = (pipe.machine.clone(), goes_to_service(id));
        if pipe.segments.is_empty() || !self.reaches(&machine, to_service) {
            return;
        }
        if pipe.unread {
            return self.refuse(id);
        }
        let waiting = pipe.segments.iter().filter(|(at, _)| at.is_none()).count();
        let delays: Vec<_> = (0..waiting).map(|_| self.delay(&machine)).collect();
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        for ((at, _), delay) in pipe.segments.iter_mut().filter(|(at, _)| at.is_none()).zip(delays) {
            pipe.last = pipe.last.max(Instant::now() + delay);
            *at = Some(pipe.last);
        }
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
    }

    /// Responds with a reset to what arrives at an end that no longer exists, unless it is an end itself.
    fn refuse(&mut self, id: u64) {
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let data = pipe.segments.iter().any(|(_, segment)| matches!(segment, Segment::Bytes(_)));
        pipe.segments.clear();
        let back = id ^ 1;
        if data && self.pipes.get(&back).is_some_and(|other| !other.unread) {
            self.send(back, Segment::Reset);
        }
    }

    /// Drops an end of a connection.
    fn leave(&mut self, reads: u64, writes: u64, said: bool) {
        let Some(pipe) = self.pipes.get_mut(&reads) else { return };
        pipe.unread = true;
        let silent = goes_to_service(reads) && !self.lit;
        if !silent {
            self.release(reads);
            if !said {
                self.send(writes, Segment::End);
            }
        }
        if self.pipes.get(&writes).is_none_or(|pipe| pipe.unread) {
            // Both ends are gone.
            self.pipes.remove(&reads);
            self.pipes.remove(&writes);
        }
    }
}

/// Where connections to the service arrive.
pub(crate) struct Door {
    arrivals: mpsc::UnboundedReceiver<Wire>,
}

impl Listener for Door {
    type Stream = Wire;

    async fn accept(&mut self) -> io::Result<Wire> {
        match self.arrivals.recv().await {
            Some(wire) => Ok(wire),
            None => std::future::pending().await,
        }
    }

    fn address(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, 2379).into())
    }
}

/// One end of a connection.
pub(crate) struct Wire {
    network: Network,
    reads: u64,
    writes: u64,
    /// The bytes that arrived and were not read yet.
    rest: Vec<u8>,
    /// Set if nothing more will arrive. An error if the connection broke.
    over: Option<Result<(), ErrorKind>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.rest.is_empty() {
                let size = this.rest.len().min(buffer.remaining());
                buffer.put_slice(&this.rest[..size]);
                this.rest.drain(..size);
                return Poll::Ready(Ok(()));
            }
            if let Some(over) = this.over {
                return Poll::Ready(over.map_err(io::Error::from));
            }
            let arrives = {
                let mut state = this.network.state();
                let Some(pipe) = state.pipes.get(&this.reads) else { return Poll::Pending };
                let reached = state.reaches(&pipe.machine, goes_to_service(this.reads));
                let Some(pipe) = state.pipes.get_mut(&this.reads) else { return Poll::Pending };
                pipe.reader = Some(context.waker().clone());
                match pipe.segments.front() {
                    _ if !reached => None,
                    Some((Some(at), _)) if *at > Instant::now() => Some(*at),
                    None | Some((None, _)) => None,
                    Some(_) => {
                        match pipe.segments.pop_front() {
                            Some((_, Segment::Bytes(bytes))) => {
                                pipe.bytes -= bytes.len();
                                if let Some(writer) = pipe.writer.take() {
                                    writer.wake();
                                }
                                this.rest = bytes;
                            }
                            Some((_, Segment::Reset)) => this.over = Some(Err(ErrorKind::ConnectionReset)),
                            _ => this.over = Some(Ok(())),
                        }
                        let (id, bytes) = (this.reads, this.rest.len().to_le_bytes());
                        state.note(b'a', id, &bytes);
                        continue;
                    }
                }
            };
            let Some(at) = arrives else { return Poll::Pending };
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.network.state();
        if matches!(self.over, Some(Err(_))) {
            return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
        }
        let Some(pipe) = state.pipes.get_mut(&self.writes) else { return Poll::Pending };
        if pipe.bytes >= WINDOW {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let size = bytes.len().min(WINDOW - pipe.bytes);
        state.send(self.writes, Segment::Bytes(bytes[..size].to_vec()));
        Poll::Ready(Ok(size))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.network.state();
        let said =
            state.pipes.get_mut(&self.writes).is_none_or(|pipe| std::mem::replace(&mut pipe.unwritten, true));
        if !said {
            state.send(self.writes, Segment::End);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = self.network.state();
        let said = state.pipes.get(&self.writes).is_none_or(|pipe| pipe.unwritten);
        state.leave(self.reads, self.writes, said);
    }
}
