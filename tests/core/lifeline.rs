//! Lifelines between nodes, with real connections: which ends are evidence of a death, and which are not.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use lattice_rdzv::{
    lifeline::{Lifelines as _, Suspicion, TcpLifelines, Verdict},
    protocol::{identity::NodeId, records::Neighbor},
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

/// Long enough for anything that happens.
const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough to see that nothing happens. A test that fails to wait long enough passes by chance, and never fails.
const NOTHING: Duration = Duration::from_millis(500);
const WORLD: u64 = 7;

fn node(number: u64) -> NodeId {
    NodeId::from_random(number << 1)
}

fn neighbor(number: u64, port: u16) -> Neighbor {
    let rank = u32::try_from(number).unwrap();
    Neighbor { id: node(number), rank, address: Ipv4Addr::LOCALHOST.to_string(), port }
}

fn enter(lines: &mut TcpLifelines, own: NodeId, world: u64, neighbors: Vec<Neighbor>) {
    lines.enter(own, world);
    lines.watch(neighbors);
}

/// Asks as node 1.
async fn confirm(lines: &TcpLifelines, suspicion: &Suspicion) -> Verdict {
    lines.questions().confirm(suspicion, node(1)).await
}

/// The suspicion that a lifeline with node 2 at this address has ended.
fn at(address: impl Into<SocketAddr>) -> Suspicion {
    let address = address.into();
    let neighbor = neighbor(2, address.port());
    Suspicion { world: WORLD, neighbor, address, sign: "connection reset".to_owned(), at: Instant::now() }
}

/// Node 2, which no other node watches yet.
fn watched() -> TcpLifelines {
    let mut lines = TcpLifelines::listen(0).unwrap();
    enter(&mut lines, node(2), WORLD, Vec::new());
    lines
}

/// Node 1, which watches node 2 at this port.
fn observer(port: u16) -> TcpLifelines {
    let mut lines = TcpLifelines::listen(0).unwrap();
    enter(&mut lines, node(1), WORLD, vec![neighbor(2, port)]);
    lines
}

async fn suspicion(lines: &mut TcpLifelines) -> Suspicion {
    timeout(PATIENCE, lines.suspicion()).await.expect("a lifeline ends without a goodbye")
}

async fn suspects_nobody(lines: &mut TcpLifelines) {
    let suspicion = timeout(NOTHING, lines.suspicion()).await;
    assert!(suspicion.is_err(), "{suspicion:?}");
}

async fn until_open(lines: &TcpLifelines) {
    timeout(PATIENCE, lines.opened()).await.expect("the lifelines open");
}

#[tokio::test]
async fn node_whose_sockets_are_closed_is_suspected_and_found_dead() {
    let dying = watched();
    let mut observer = observer(dying.port());
    until_open(&observer).await;
    drop(dying);
    let suspicion = suspicion(&mut observer).await;
    assert_eq!((suspicion.world, suspicion.neighbor.id), (WORLD, node(2)));
    assert_eq!(confirm(&observer, &suspicion).await, Verdict::Dead);
}

#[tokio::test]
async fn goodbye_of_either_side_is_no_sign_of_a_death() {
    let leaving = watched();
    let mut observer = observer(leaving.port());
    until_open(&observer).await;
    Box::new(leaving).say_goodbye().await;
    suspects_nobody(&mut observer).await;

    let mut staying = watched();
    let leaving = self::observer(staying.port());
    until_open(&leaving).await;
    Box::new(leaving).say_goodbye().await;
    suspects_nobody(&mut staying).await;
    assert!(!staying.questions().others_ended(node(3)));
}

#[tokio::test]
async fn greeting_waits_until_the_listener_knows_the_world() {
    let mut late = TcpLifelines::listen(0).unwrap();
    let observer = observer(late.port());
    assert!(timeout(NOTHING, observer.opened()).await.is_err(), "no greeting yet");
    enter(&mut late, node(2), WORLD, Vec::new());
    until_open(&observer).await;
}

#[tokio::test]
async fn lifeline_of_a_world_of_long_ago_ends_with_a_goodbye() {
    let mut other = watched();
    let mut observer = observer(other.port());
    until_open(&observer).await;
    // The observer enters the next world first.
    enter(&mut observer, node(1), WORLD + 1, vec![neighbor(2, other.port())]);
    assert!(timeout(NOTHING, observer.opened()).await.is_err());
    enter(&mut other, node(2), WORLD + 1, Vec::new());
    until_open(&observer).await;
    enter(&mut other, node(2), WORLD + 2, Vec::new());
    enter(&mut other, node(2), WORLD + 3, Vec::new());
    suspects_nobody(&mut observer).await;
}

#[tokio::test]
async fn lifeline_to_a_member_of_both_worlds_stays_open_and_belongs_to_the_next_one() {
    let mut other = watched();
    // Accepts one connection only.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, to) = (listener.local_addr().unwrap().port(), other.port());
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    });
    let mut observer = observer(port);
    until_open(&observer).await;
    enter(&mut other, node(2), WORLD + 1, Vec::new());
    // It has another rank there.
    let same = Neighbor { rank: 0, ..neighbor(2, port) };
    enter(&mut observer, node(1), WORLD + 1, vec![same]);
    until_open(&observer).await;
    drop(other);
    assert_eq!(suspicion(&mut observer).await.world, WORLD + 1);
}

#[tokio::test]
async fn lifeline_to_a_member_that_is_not_watched_in_the_next_world_ends_with_a_goodbye() {
    let (two, mut three) = (watched(), TcpLifelines::listen(0).unwrap());
    let mut observer = observer(two.port());
    until_open(&observer).await;
    enter(&mut three, node(3), WORLD + 1, Vec::new());
    enter(&mut observer, node(1), WORLD + 1, vec![neighbor(3, three.port())]);
    until_open(&observer).await;
    sleep(NOTHING).await;
    assert!(!two.questions().others_ended(node(3)));
    drop(two);
    suspects_nobody(&mut observer).await;
}

#[tokio::test(start_paused = true)]
async fn member_that_does_not_learn_of_the_next_world_is_not_suspected_and_greeted_again() {
    let mut other = watched();
    let mut observer = observer(other.port());
    until_open(&observer).await;
    enter(&mut observer, node(1), WORLD + 1, vec![neighbor(2, other.port())]);
    let opened = timeout(Duration::from_secs(60), observer.opened()).await;
    assert!(opened.is_err(), "it is still in the world before");
    suspects_nobody(&mut observer).await;
    assert!(!other.questions().others_ended(node(3)));
    enter(&mut other, node(2), WORLD + 1, Vec::new());
    timeout(Duration::from_secs(60), observer.opened()).await.expect("it opens again");
}

#[tokio::test]
async fn death_between_two_worlds_is_seen_by_the_lifelines_of_the_last_one() {
    let other = watched();
    let mut observer = observer(other.port());
    until_open(&observer).await;
    enter(&mut observer, node(1), WORLD + 1, vec![neighbor(2, other.port())]);
    drop(other);
    let suspicion = suspicion(&mut observer).await;
    assert_eq!(suspicion.world, WORLD);
    assert_eq!(confirm(&observer, &suspicion).await, Verdict::Dead);
}

#[tokio::test]
async fn node_whose_connection_was_cut_greets_and_is_alive() {
    let living = watched();
    let (proxy, port) = proxy(living.port()).await;
    let mut observer = observer(port);
    until_open(&observer).await;
    proxy.abort();
    let suspicion = suspicion(&mut observer).await;
    assert_eq!(confirm(&observer, &at((Ipv4Addr::LOCALHOST, living.port()))).await, Verdict::Alive);
    // The port of a proxy that is gone refuses. This is why the address in the record is that of the node itself.
    assert_eq!(confirm(&observer, &suspicion).await, Verdict::Dead);
}

/// Forwards one connection after the other to this port of the machine, until it is aborted.
async fn proxy(to: u16) -> (tokio::task::JoinHandle<()>, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let forwarding = tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    });
    (forwarding, port)
}

#[tokio::test]
async fn another_node_on_the_port_of_the_accused_leaves_the_decision_to_the_lease() {
    let mut other = TcpLifelines::listen(0).unwrap();
    enter(&mut other, node(3), WORLD, Vec::new());
    let verdict = confirm(&other, &at((Ipv4Addr::LOCALHOST, other.port()))).await;
    assert_eq!(verdict, Verdict::Unknown);
}

#[tokio::test]
async fn what_accepts_and_closes_or_says_nothing_leaves_the_decision_to_the_lease() {
    for closes in [true, false] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                if closes {
                    // A close with unread bytes resets the connection.
                    let _ = stream.read(&mut [0; 64]).await;
                } else {
                    kept.push(stream);
                }
            }
        });
        let verdict = confirm(&TcpLifelines::listen(0).unwrap(), &at(address)).await;
        assert_eq!(verdict, Verdict::Unknown, "closes: {closes}");
        serving.abort();
    }
}

/// The kernel of such a node ignores new connections (`listen(2)`).
#[tokio::test]
async fn full_backlog_leaves_the_decision_to_the_lease() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(NOTHING, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    assert_eq!(confirm(&TcpLifelines::listen(0).unwrap(), &at(address)).await, Verdict::Unknown);
}

#[tokio::test]
async fn of_two_nodes_on_one_address_only_the_dead_one_is_found_dead() {
    let (two, mut three) = (watched(), TcpLifelines::listen(0).unwrap());
    enter(&mut three, node(3), WORLD, Vec::new());
    let mut observer = TcpLifelines::listen(0).unwrap();
    enter(&mut observer, node(1), WORLD, vec![neighbor(2, two.port()), neighbor(3, three.port())]);
    until_open(&observer).await;
    drop(two);
    let suspicion = suspicion(&mut observer).await;
    assert_eq!(suspicion.neighbor.id, node(2));
    assert_eq!(confirm(&observer, &suspicion).await, Verdict::Dead);
    suspects_nobody(&mut observer).await;
}

#[tokio::test]
async fn hosted_service_is_gone_if_its_address_refuses_on_the_machine_of_its_node() {
    let questions = TcpLifelines::listen(0).unwrap().questions();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let service = listener.local_addr().unwrap().to_string();
    assert!(!questions.is_refused(&service, "127.0.0.1").await, "it serves");
    drop(listener);
    assert!(questions.is_refused(&service, "127.0.0.1").await);
    // Another address of this machine, and an address of another one (RFC 5737).
    assert!(questions.is_refused(&service, "127.0.0.2").await);
    assert!(!questions.is_refused(&service, "192.0.2.77").await);
}

#[tokio::test]
async fn lifeline_that_ended_while_the_peer_lives_is_opened_again() {
    let living = watched();
    let (forwarding, port) = proxy(living.port()).await;
    let mut observer = observer(port);
    until_open(&observer).await;
    forwarding.abort();
    suspicion(&mut observer).await;
    // Something listens at that port again, so the lifeline opens again, and its end is seen again.
    let listener = loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => break listener,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    let (mut near, _) = timeout(PATIENCE, listener.accept()).await.expect("it connects again").unwrap();
    let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, living.port())).await.unwrap();
    let forwarded = timeout(NOTHING, tokio::io::copy_bidirectional(&mut near, &mut far)).await;
    assert!(forwarded.is_err(), "an idle lifeline stays open: {forwarded:?}");
    drop((near, far));
    suspicion(&mut observer).await;
}

#[tokio::test]
async fn of_two_nodes_that_end_at_once_each_is_accompanied_by_the_other() {
    let (two, mut three) = (watched(), TcpLifelines::listen(0).unwrap());
    enter(&mut three, node(3), WORLD, Vec::new());
    let mut observer = TcpLifelines::listen(0).unwrap();
    enter(&mut observer, node(1), WORLD, vec![neighbor(2, two.port()), neighbor(3, three.port())]);
    until_open(&observer).await;
    drop((two, three));
    let first = suspicion(&mut observer).await;
    let second = suspicion(&mut observer).await;
    for suspicion in [first, second] {
        assert!(observer.questions().others_ended(suspicion.neighbor.id));
    }
}
