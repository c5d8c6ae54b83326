//! OpenEnv in both directions: our client and our server with each other, with the reference packages, and with faulty ones.

use crate::common;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{Message, WebSocket, accept};
use uncouple::env::bridge::Limits;
use uncouple::env::household::Household;
use uncouple::env::openenv::{Address, Bounds, Connection, Games, MessageLayout, OpenEnv, Server, Session};
use uncouple::env::{EnvError, Environment, Observation, Split, Suite, Task};
use uncouple::train::run_folder::Existing;
use uncouple::train::{suite, train};

const LIMITS: Limits =
    Limits { workers: 4, start: Duration::from_secs(10), call: Duration::from_secs(10), retries: 2, wait: None };
const BOUNDS: Bounds = Bounds { sessions: 64, idle: Duration::from_secs(60), request: Duration::from_secs(10) };

/// Our server in this process; it serves to the end of the test program.
fn serving(bounds: Bounds) -> String {
    let server = Server::bind(Box::new(Household::new(0)), SocketAddr::from(([127, 0, 0, 1], 0)), bounds).unwrap();
    let url = format!("http://{}", server.address());
    std::thread::spawn(move || server.run());
    url
}

fn connected(url: &str, limits: Limits) -> OpenEnv {
    OpenEnv::open(url, "", limits, 0).unwrap()
}

fn refused(url: &str) -> String {
    let quick = Limits { start: Duration::from_millis(800), ..LIMITS };
    OpenEnv::open(url, "", quick, 0).err().expect("is refused").to_string()
}

/// The first admissible commands, now and then an unknown one; what was shown.
fn random_walk(env: &mut dyn Environment, steps: usize) -> Result<(Vec<String>, Vec<Observation>), EnvError> {
    let (mut commands, mut seen) = (Vec::new(), vec![env.reset()?]);
    while commands.len() < steps && !seen[commands.len()].done {
        let options = &seen[commands.len()].admissible;
        let at = commands.len();
        let command =
            if at % 4 == 3 || options.is_empty() { "sing".into() } else { options[at * 7 % options.len()].clone() };
        seen.push(env.step(&command)?);
        commands.push(command);
    }
    Ok((commands, seen))
}

#[test]
fn our_client_plays_what_our_server_serves_word_for_word() {
    let (household, served) = (Household::new(0), connected(&serving(BOUNDS), LIMITS));
    for (split, index) in [(Split::L0, 0), (Split::L1, 5), (Split::L2, 127)] {
        assert_eq!(served.len(split), household.len(split));
        let (here, there) = (household.task(split, index).unwrap(), served.task(split, index).unwrap());
        assert_eq!((&there.kind, there.split, &there.id), (&here.kind, split, &format!("{split}/{index}")));
        let (commands, expected) = random_walk(&mut *household.open(&here).unwrap(), 12).unwrap();
        let mut env = served.open(&there).unwrap();
        assert!(env.is_remote());
        assert_eq!(random_walk(&mut *env, 12).unwrap(), (commands, expected));
    }
    let ids = |suite: &dyn Suite| (0..4).map(|i| suite.task(Split::Train, i).unwrap().id).collect::<Vec<_>>();
    let other = OpenEnv::open(&serving(BOUNDS), "", LIMITS, 1).unwrap();
    assert_eq!(served.content_hash(), other.content_hash());
    assert_ne!(ids(&served), ids(&other));
    assert!(served.open_for_training(&served.task(Split::Train, 3).unwrap()).unwrap().reset().is_ok());
}

#[test]
fn both_sides_guard_what_is_held_out() {
    let served = connected(&serving(BOUNDS), LIMITS);
    for id in ["L2/0", "nowhere/1", "L0/128", "seed-7"] {
        let task = Task { id: id.into(), kind: String::new(), split: Split::Train };
        assert!(matches!(served.open_for_training(&task), Err(EnvError::HeldOut { .. })), "{id}");
    }
    for id in ["L0/128", "L0/../0", "../../0", "L0/+3", "L0/03", "seed-7", ""] {
        let task = Task { id: id.into(), kind: String::new(), split: Split::L0 };
        let error = served.open(&task).err().expect("is refused").to_string();
        assert!(error.contains("the server does not list it"), "{error}");
    }
    let household = Household::new(0);
    let held_out = household.task(Split::L2, 0).unwrap().id;
    let mut session = Session::new(Arc::new(Games::new(Box::new(household))));
    let mut reset = |data: Value| session.answer(&json!({ "type": "reset", "data": data }).to_string()).unwrap();
    let refused = reset(json!({ "task": held_out }));
    assert_eq!(refused["data"]["code"], "EXECUTION_ERROR");
    assert!(refused["data"]["message"].as_str().unwrap().contains("is held out for L2"), "{refused}");
    assert_eq!(reset(json!({ "task": held_out, "split": "L2" }))["type"], "observation");
    assert_eq!(reset(json!({ "task": "../../..", "split": "L0" }))["data"]["code"], "EXECUTION_ERROR");
}

#[test]
fn every_message_of_a_session_has_its_answer() {
    let mut session = Session::new(Arc::new(Games::new(Box::new(Household::new(0)))));
    let mut say = |message: &str| session.answer(message);
    for (message, code) in [
        ("{", "INVALID_JSON"),
        ("7", "UNKNOWN_TYPE"),
        (r#"{"type":"dance"}"#, "UNKNOWN_TYPE"),
        (r#"{"type":"step","data":{"command":"look"}}"#, "EXECUTION_ERROR"),
        (r#"{"type":"reset","data":{"seed":"x"}}"#, "VALIDATION_ERROR"),
        (r#"{"type":"reset","data":{"split":"L9"}}"#, "VALIDATION_ERROR"),
        (r#"{"type":"reset","data":{"split":"L0","index":128}}"#, "EXECUTION_ERROR"),
        (r#"{"type":"step"}"#, "VALIDATION_ERROR"),
        (r#"{"type":"step","data":{"command":"look","more":1}}"#, "VALIDATION_ERROR"),
    ] {
        let answer = say(message).unwrap();
        assert_eq!((&answer["type"], &answer["data"]["code"]), (&json!("error"), &json!(code)), "{message}: {answer}");
    }
    let begun = say(r#"{"type":"reset","data":{"seed":7,"episode_id":"e","unknown":1}}"#).unwrap();
    assert_eq!(begun, say(r#"{"type":"reset","data":{"seed":7,"episode_id":"e"}}"#).unwrap());
    assert_eq!((&begun["type"], &begun["data"]["done"]), (&json!("observation"), &json!(false)));
    assert_eq!(say(r#"{"type":"step","data":{"command":"sing"}}"#).unwrap()["data"]["observation"]["valid"], false);
    let state = say(r#"{"type":"state"}"#).unwrap()["data"].take();
    assert_eq!(
        (&state["episode_id"], &state["step_count"], &state["split"]),
        (&json!("e"), &json!(1), &json!("train"))
    );
    // Resets that name nothing go on to further tasks; a seed names the same one again.
    let first = say(r#"{"type":"reset"}"#).unwrap();
    assert_ne!(first, say(r#"{"type":"reset"}"#).unwrap());
    assert_eq!(begun, say(r#"{"type":"reset","data":{"seed":7}}"#).unwrap());
    assert_eq!(say(r#"{"type":"close"}"#), None);
}

/// With `--nocapture` also how long a step took, when all sessions always have one under way.
#[test]
fn two_hundred_sessions_lose_nothing() {
    let served = connected(&serving(Bounds { sessions: 200, ..BOUNDS }), Limits { workers: 200, ..LIMITS });
    let household = Household::new(0);
    let local = |i| random_walk(&mut *household.open(&household.task(Split::L0, i).unwrap()).unwrap(), 6).unwrap();
    let expected: Vec<_> = (0..128).map(local).collect();
    let play = |i: usize| -> Vec<Duration> {
        let (commands, seen) = &expected[i % 128];
        let mut env = served.open(&served.task(Split::L0, i as u64 % 128).unwrap()).unwrap();
        assert_eq!(env.reset().unwrap(), seen[0]);
        let mut step = |(command, seen): (&String, &Observation)| {
            let began = Instant::now();
            assert_eq!(env.step(command).unwrap(), *seen);
            began.elapsed()
        };
        commands.iter().zip(&seen[1..]).map(&mut step).collect()
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let sessions: Vec<_> = (0..200).map(|i| scope.spawn(move || play(i))).collect();
        sessions.into_iter().flat_map(|session| session.join().unwrap()).collect()
    });
    took.sort_unstable();
    let at = |share: usize| took[(took.len() - 1) * share / 100];
    println!("200 sessions, {} steps: p50 {:.2?}, p99 {:.2?}", took.len(), at(50), at(99));
}

#[test]
fn a_full_server_says_so_and_has_room_again_later() {
    let url = serving(Bounds { sessions: 1, ..BOUNDS });
    let (one, two) = (connected(&url, LIMITS), connected(&url, LIMITS));
    let task = one.task(Split::L0, 0).unwrap();
    let mut first = one.open(&task).unwrap();
    first.reset().unwrap();
    let error = two.open(&task).unwrap().reset().unwrap_err().to_string();
    assert!(error.contains("1 sessions are open (CAPACITY_REACHED); lower env.workers"), "{error}");
    drop((first, one));
    assert!(two.open(&task).unwrap().reset().is_ok());
}

/// Status and text of the answer to a request over HTTP, written as it stands.
fn http(url: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer)
}

#[test]
fn a_game_over_http_needs_a_seat_too() {
    let url = serving(Bounds { sessions: 1, ..BOUNDS });
    let served = connected(&url, LIMITS);
    let mut first = served.open(&served.task(Split::L0, 0).unwrap()).unwrap();
    first.reset().unwrap();
    let post = |route: &str, body: &str| {
        let head = format!("POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        http(&url, &format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    };
    let step = r#"{"action":{"command":"look"}}"#;
    for (route, body) in [("/reset", ""), ("/step", step)] {
        let (status, answer) = post(route, body);
        assert_eq!(status, 503, "{answer}");
        assert!(answer.contains("1 sessions are open"), "{answer}");
    }
    assert_eq!(post("/household/num_tasks", r#"{"split":"L0"}"#).0, 200, "what is no game goes on");
    drop((first, served));
    let deadline = Instant::now() + Duration::from_secs(10);
    while post("/reset", "").0 != 200 {
        assert!(Instant::now() < deadline, "the seat is not free again");
    }
    assert_eq!(post("/step", step).0, 200);
}

#[test]
fn pages_of_other_sites_are_refused() {
    let url = serving(BOUNDS);
    let own = url.trim_start_matches("http://");
    let get = |route: &str, host: &str, more: &str| {
        http(&url, &format!("GET {route} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"))
    };
    for host in [own, "localhost", "[::1]:80"] {
        assert_eq!(get("/schema", host, "").0, 200, "{host}");
    }
    assert_eq!(get("/schema", own, &format!("Origin: http://{own}\r\n")).0, 200);
    for route in ["/schema", "/ws", "/nowhere"] {
        let (status, answer) = get(route, "evil.example.org", "");
        assert_eq!(status, 403, "DNS rebinding: {answer}");
        assert!(answer.contains("--allow-host"), "{answer}");
        assert_eq!(get(route, own, "Origin: http://evil.example.org\r\n").0, 403, "{route}");
    }
    let elsewhere = "GET http://evil.example.org/schema HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    assert_eq!(http(&url, elsewhere).0, 403);
    let more = Server::bind(Box::new(Household::new(0)), SocketAddr::from(([127, 0, 0, 1], 0)), BOUNDS).unwrap();
    let more = more.allow_hosts(vec!["games.example.org".into()]);
    let url = format!("http://{}", more.address());
    std::thread::spawn(move || more.run());
    let named = "GET /schema HTTP/1.1\r\nHost: games.example.org\r\nConnection: close\r\n\r\n";
    assert_eq!(http(&url, named).0, 200);
}

#[test]
fn a_request_that_does_not_come_is_not_waited_for() {
    let url = serving(Bounds { request: Duration::from_millis(200), ..BOUNDS });
    // A head that never ends, and a body that never comes: the server closes.
    assert!(matches!(http(&url, "GET /schema HTTP/1.1\r\nHost: local").0, 0 | 408));
    let body = "POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nConnection: close\r\n\r\n{";
    assert_eq!(http(&url, body).0, 408);
    let long = "POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\nConnection: close\r\n\r\n{";
    assert_eq!(http(&url, long).0, 413);
    // More of them than there may be connections at once, and one that means it.
    let address = url.trim_start_matches("http://");
    let silent: Vec<_> = (0..300).map_while(|_| TcpStream::connect(address).ok()).collect();
    assert_eq!(silent.len(), 300);
    assert!(connected(&url, LIMITS).len(Split::L0).is_some());
}

/// Processes that a process has started, by their name.
fn children(of: u32, name: &str) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let child = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let parent = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(of) && stat.contains(&format!("({name}"))
    };
    processes.filter(child).collect()
}

#[test]
fn a_server_that_is_ended_says_goodbye_and_ends_its_workers() {
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/worker.py");
    let command = format!("env.worker.command=[\"python3\", {:?}]", worker.display().to_string());
    let server = Command::new(env!("CARGO_BIN_EXE_uncouple"))
        .args(["env", "serve", "--port", "0", "--set", "env.suite=worker", "--set", &command])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut server = Served(server);
    let mut url = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut url).unwrap();
    let socket = format!("{}/ws", url.trim().replace("http://", "ws://"));
    let (mut socket, _) = tokio_tungstenite::tungstenite::connect(socket).unwrap();
    socket.send(Message::text(r#"{"type":"reset","data":{}}"#)).unwrap();
    assert!(socket.read().unwrap().into_text().unwrap().contains("observation"));
    let workers = children(server.0.id(), "python3");
    assert_eq!(workers.len(), 1);
    let kill = Command::new("kill").args(["-TERM", &server.0.id().to_string()]).status().unwrap();
    assert!(kill.success());
    match socket.read().unwrap() {
        Message::Close(Some(frame)) => {
            assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1001, "the server is shutting down"));
        }
        other => panic!("{other:?}"),
    }
    drop(socket);
    assert!(server.0.wait().unwrap().success());
    assert!(!Path::new(&format!("/proc/{}", workers[0])).exists(), "its worker outlived it");
}

#[test]
fn an_idle_session_is_closed_and_played_again_when_it_goes_on() {
    let served = connected(&serving(Bounds { idle: Duration::from_millis(300), ..BOUNDS }), LIMITS);
    let mut env = served.open(&served.task(Split::L0, 0).unwrap()).unwrap();
    let first = env.reset().unwrap();
    let second = env.step(&first.admissible[0]).unwrap();
    std::thread::sleep(Duration::from_millis(700));
    let third = env.step(&first.admissible[0]).unwrap();
    assert_ne!((&third.text, &second.text), (&second.text, &first.text));
}

/// `uncouple env serve` as a process.
struct Served(Child);

impl Served {
    fn start(port: u16) -> (Served, u16) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_uncouple"))
            .args(["env", "serve", "--port", &port.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit_once(':').unwrap().1.parse().unwrap();
        (Served(child), port)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_server_killed_mid_episode_is_replaced_or_given_up() {
    let (server, port) = Served::start(0);
    let served = connected(&format!("127.0.0.1:{port}"), LIMITS);
    let household = Household::new(0);
    let (commands, expected) =
        random_walk(&mut *household.open(&household.task(Split::L1, 2).unwrap()).unwrap(), 8).unwrap();
    let mut env = served.open(&served.task(Split::L1, 2).unwrap()).unwrap();
    assert_eq!(env.reset().unwrap(), expected[0]);
    assert_eq!(env.step(&commands[0]).unwrap(), expected[1]);
    drop(server);
    let (server, _) = Served::start(port);
    for (command, expected) in commands[1..].iter().zip(&expected[2..]) {
        assert_eq!(env.step(command).unwrap(), *expected);
    }
    drop(server);
    let began = Instant::now();
    let error = env.step("look").unwrap_err();
    assert!(matches!(error, EnvError::Failed { .. }));
    assert!(error.to_string().contains("given up after 3 tries"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_port_in_use_and_a_bad_setting_are_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let serve = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_uncouple")).args(["env", "serve"]).args(args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let port = taken.local_addr().unwrap().port().to_string();
    let said = serve(&["--port", &port]);
    assert!(said.contains("cannot listen on 127.0.0.1:") && said.contains("choose another --host or --port"), "{said}");
    assert!(serve(&["--set", "env.suite=chess"]).contains("no such suite"));
}

#[test]
fn what_is_no_openenv_server_is_named() {
    assert!(refused("").contains("must be the address of an OpenEnv server"));
    assert!(refused("ftp://host").contains("must begin with http://"));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(refused(&format!("http://{free}")).contains("/schema: "));
    assert!(refused("http://no.such.host.invalid:1").contains("OpenEnv server http://no.such.host.invalid:1"));
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    assert!(refused(&format!("ws://{}", silent.local_addr().unwrap())).contains("/schema: timeout"));
    assert!(began.elapsed() < Duration::from_secs(3));
    let says = |status: &str, body: &str| refused(&faulty(status, body, |_| {}));
    assert!(says("404 Not Found", "").contains("there is no /schema"));
    assert!(says("500 Oops", "it burns").contains("/schema: it answers with status 500: it burns"));
    assert!(says("200 OK", "<html>").contains("/schema: its answer is not JSON"));
    assert!(says("200 OK", "{}").contains("no field that takes text"));
    let two = r#"{"action":{"properties":{"a":{"type":"string"},"b":{"type":"string"}}}}"#;
    assert!(says("200 OK", two).contains("set env.openenv.action to one of a, b"));
    // The certificate of https is requested, and there is none.
    let url = serving(BOUNDS).replace("http://", "https://");
    assert!(refused(&url).contains("/schema: "));
    let layout = MessageLayout { action: "command".into(), text: None, hints: false };
    let soon = Instant::now() + Duration::from_secs(5);
    let error = Connection::open(&Address::parse(&url).unwrap(), Arc::new(layout), soon).err().unwrap().to_string();
    assert!(error.starts_with("no session at wss://127.0.0.1:"), "{error}");
}

#[test]
fn an_address_may_be_written_in_several_ways() {
    let of = |url| Address::parse(url).unwrap();
    let plain = Address { http: "http://host:8000".into(), socket: "ws://host:8000/ws".into() };
    for url in ["http://host:8000", "http://host:8000/", "ws://host:8000", "host:8000"] {
        assert_eq!(of(url), plain);
    }
    assert_eq!(of("https://me-game.hf.space/").socket, "wss://me-game.hf.space/ws");
    for keyed in ["http://me:s3cret@host", "me:s3cret@host:1", "http://host/?key=s3cret", "http://host/#s3cret"] {
        for error in [Address::parse(keyed).unwrap_err().to_string(), refused_by_config("env.openenv.url", keyed)] {
            assert!(error.contains("it is written down") && !error.contains("s3cret"), "{error}");
        }
    }
}

fn refused_by_config(key: &str, value: &str) -> String {
    let set = uncouple::config::Override::parse(&format!("{key}={value}")).unwrap();
    uncouple::config::Config::load(None, &[set]).unwrap_err().to_string()
}

#[test]
fn the_text_fields_are_found_in_the_schema() {
    let text = || json!({ "type": "string" });
    let maybe = json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] });
    let schema = |action: Value, required: Value, shown: Value| json!({ "action": { "properties": action, "required": required }, "observation": { "properties": shown } });
    let read = |schema: &Value, action| MessageLayout::read(schema, action).map(|l| (l.action, l.text)).unwrap();
    let some = |action: &str, text: Option<&str>| (action.to_string(), text.map(String::from));
    let echo = schema(
        json!({ "message": text(), "metadata": {} }),
        json!(["message"]),
        json!({ "echoed": text(), "done": {} }),
    );
    assert_eq!(read(&echo, ""), some("message", Some("echoed")));
    let code =
        schema(json!({ "code": text(), "note": maybe }), json!(["code"]), json!({ "out": text(), "err": text() }));
    assert_eq!(read(&code, ""), some("code", None));
    assert_eq!(read(&code, "note"), some("note", None));
    let named = schema(json!({ "say": maybe }), json!([]), json!({ "text": text(), "room": text() }));
    assert_eq!(read(&named, ""), some("say", Some("text")));
    // By reference: from the part's own root or from the document's, as the only one of several, through fields, in circles.
    let action = json!({ "properties": { "command": text() }, "required": ["command"] });
    let shown =
        json!({ "properties": { "text": { "$ref": "#/components/Words" }, "size": { "$ref": "#/components/Size" } } });
    let components = json!({
        "Words": { "oneOf": [{ "type": ["string", "null"] }, { "$ref": "#/components/Words" }] },
        "Size": { "type": "integer" }, "Say": action,
        "A": { "$ref": "#/components/B" }, "B": { "$ref": "#/components/A" },
    });
    let fields = json!({ "command": { "$ref": "#/$defs/A" }, "n": { "$ref": "#/components/Size" } });
    for referring in [
        json!({ "$ref": "#/$defs/A", "$defs": { "A": action } }),
        json!({ "allOf": [{ "$ref": "#/$defs/A" }], "$defs": { "A": { "$ref": "#/$defs/B" }, "B": action } }),
        json!({ "$ref": "#/components/Say" }),
        json!({ "properties": fields, "$defs": { "A": text() } }),
    ] {
        let whole = json!({ "action": referring, "observation": shown, "components": components });
        assert_eq!(read(&whole, ""), some("command", Some("text")), "{whole}");
    }
    let circle = json!({ "action": { "$ref": "#/components/A" }, "observation": {}, "components": components });
    assert!(MessageLayout::read(&circle, "").unwrap_err().contains("no field that takes text"));
}

/// A server with a Task API that answers each route below `/e/` by `answer(route)`.
fn listing(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut head, mut length) = (String::new(), 0);
            while reader.read_line(&mut head).is_ok_and(|count| count > 2) {
                let line = head.lines().last().unwrap_or_default().to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |n| n.parse().unwrap());
            }
            let _ = reader.read_exact(&mut vec![0; length]);
            let body = match head.split(' ').nth(1).unwrap_or_default() {
                "/schema" => SCHEMA.into(),
                "/list_environments" => r#"["e"]"#.into(),
                route => answer(route.trim_start_matches("/e/")),
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    url
}

#[test]
fn splits_without_end_cost_nothing_and_are_not_evaluated_whole() {
    for count in [1 << 31, u64::MAX] {
        let url = listing(move |route| match route {
            "splits" => {
                r#"[{"name":"train"},{"name":"more","type":"train"},{"name":"val","type":"validation"}]"#.into()
            }
            "num_tasks" => format!("{{\"num_tasks\":{count}}}"),
            _ => panic!("{route} is requested"),
        });
        let played = connected(&url, LIMITS);
        assert_eq!((played.len(Split::L0), played.len(Split::L1)), (Some(count), Some(0)));
        assert_eq!(played.task(Split::L0, 7).unwrap().id, "val/7");
        assert!(played.task(Split::Train, 7).is_ok());
        let config = |games: u32| {
            let set = ["env.suite=openenv".to_string(), format!("env.openenv.url={url}")];
            let set: Vec<_> = set.iter().map(|text| uncouple::config::Override::parse(text).unwrap()).collect();
            let mut config = uncouple::config::Config::load(None, &set).unwrap();
            config.eval.games = games;
            config
        };
        assert!(suite(&config(2)).is_ok());
        for games in [0, 4_000_000_000] {
            let error = suite(&config(games)).err().expect("is refused").to_string();
            assert!(error.contains("eval.games") && error.contains("say how many to evaluate on"), "{error}");
        }
    }
}

#[test]
fn answers_that_are_too_much_and_ways_elsewhere_are_refused() {
    let many = (0..1000).map(|i| format!("{{\"name\":\"s{i}\"}}")).collect::<Vec<_>>().join(",");
    let error = refused(&listing(move |_| format!("[{many}]")));
    assert!(error.contains("/splits: 1000 are too many"), "{error}");
    let long = format!("[\"{}\"]", "x".repeat(20 << 20));
    let error = OpenEnv::open(&listing(move |_| long.clone()), "", LIMITS, 0).err().expect("is refused").to_string();
    assert!(error.contains("/e/splits: ") && !error.contains("timeout"), "{error}");
    let error = refused(&faulty("302 Found\r\nLocation: http://elsewhere.invalid/x", "", |_| {}));
    assert!(error.contains("it sends elsewhere, to \"http://elsewhere.invalid/x\": set env.openenv.url"), "{error}");
    let flood = |mut socket: WebSocket<TcpStream>| {
        let _ = socket.read();
        let _ = socket.send(observation(&"x".repeat(5 << 20)));
        std::thread::sleep(Duration::from_secs(60));
    };
    let played = connected(&faulty("200 OK", SCHEMA, flood), Limits { retries: 0, ..LIMITS });
    let error = played.open(&played.task(Split::L0, 0).unwrap()).unwrap().reset().unwrap_err().to_string();
    assert!(error.contains("the connection broke: Space limit exceeded"), "{error}");
}

const SCHEMA: &str =
    r#"{"action":{"properties":{"move":{"type":"string"}}},"observation":{"properties":{"board":{"type":"string"}}}}"#;

/// A server that answers `/schema` with `status` and `body`, nothing else over HTTP, and leaves sessions to `session`.
fn faulty(status: &str, body: &str, session: impl Fn(WebSocket<TcpStream>) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let schema = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let session = Arc::new(session);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut start = [0; 12];
            let count = stream.peek(&mut start).unwrap();
            match &start[..count] {
                head if head.starts_with(b"GET /ws") => {
                    let session = session.clone();
                    std::thread::spawn(move || session(accept(stream).unwrap()));
                }
                head => {
                    let found = head.starts_with(b"GET /schema");
                    let _ = stream.read(&mut [0; 4096]);
                    let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    let _ = stream.write_all(if found { schema.as_bytes() } else { missing.as_bytes() });
                }
            }
        }
    });
    url
}

fn observation(board: &str) -> Message {
    let data = json!({ "observation": { "board": board }, "reward": null, "done": false });
    Message::text(json!({ "type": "observation", "data": data }).to_string())
}

/// An answer to each message, by its number.
fn answering(answers: Vec<Message>) -> impl Fn(WebSocket<TcpStream>) + Send + Sync + 'static {
    move |mut socket| {
        for answer in &answers {
            if socket.read().is_err() || socket.send(answer.clone()).is_err() {
                return;
            }
        }
        // Deaf, but there.
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn faults_of_a_server_fail_the_episode_with_their_reason() {
    let quick = Limits { call: Duration::from_millis(400), retries: 1, ..LIMITS };
    let error = |code: &str| {
        Message::text(json!({ "type": "error", "data": { "message": "no such move", "code": code } }).to_string())
    };
    let begun = || observation("a");
    let pays = |reward: &str| {
        let data = format!(r#"{{"observation":{{"board":"b"}},"reward":{reward},"done":true}}"#);
        Message::text(format!(r#"{{"type":"observation","data":{data}}}"#))
    };
    let cases: [(Vec<Message>, &str); 14] = [
        (vec![begun(), pays("NaN")], "JSON has no NaN"),
        (vec![begun(), pays("-Infinity")], "JSON has no Infinity"),
        (vec![begun(), pays("1e300")], "it paid the reward inf"),
        (vec![begun(), pays("\"1.0\"")], "its reward is no number"),
        (vec![begun(), Message::text("{oops")], "the answer breaks the protocol"),
        (vec![begun(), Message::text(r#"{"type":"state","data":{}}"#)], "it is no observation"),
        (vec![begun(), Message::text(r#"{"type":"observation","data":{}}"#)], "missing field `observation`"),
        (vec![begun(), Message::text(r#"{"type":"observation","data":{"observation":{}}}"#)], "no text in \"board\""),
        (vec![begun(), Message::binary(vec![1, 2])], "it sent bytes instead of text"),
        (vec![begun(), Message::Close(None)], "it closed the connection"),
        (vec![begun()], "no answer within 0.4 s"),
        (vec![begun(), error("SESSION_ERROR")], "no such move (SESSION_ERROR); given up after 2 tries"),
        (vec![begun(), error("EXECUTION_ERROR")], "OpenEnv server, step: no such move (EXECUTION_ERROR)"),
        (vec![error("FACTORY_ERROR")], "OpenEnv server, reset: no such move (FACTORY_ERROR); given up after 2 tries"),
    ];
    for (answers, expected) in cases {
        let played = connected(&faulty("200 OK", SCHEMA, answering(answers)), quick);
        assert_eq!((played.len(Split::L0), played.len(Split::L2)), (Some(128), Some(0)));
        let mut env = played.open_for_training(&played.task(Split::Train, 0).unwrap()).unwrap();
        let began = Instant::now();
        let error = env.reset().and_then(|_| env.step("go")).unwrap_err();
        assert!(matches!(error, EnvError::Failed { .. }));
        assert!(error.to_string().contains(expected), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5), "{expected}: {:?}", began.elapsed());
    }
}

/// An observation that is declared with an expert.
const HINTING: &str = r#"{"action":{"properties":{"move":{"type":"string"}}},
    "observation":{"properties":{"board":{"type":"string"},"expert":{"type":"string"},"distance":{"type":"integer"}}}}"#;

fn hinting(hints: &str) -> Message {
    let data = format!(r#"{{"observation":{{"board":"b"{hints}}},"reward":0.0,"done":false}}"#);
    Message::text(format!(r#"{{"type":"observation","data":{data}}}"#))
}

#[test]
fn a_server_tells_its_expert_and_the_distance() {
    let answers =
        vec![hinting(r#","expert":"go","distance":2"#), hinting(r#","expert":null,"distance":1"#), hinting("")];
    let played = connected(&faulty("200 OK", HINTING, answering(answers)), LIMITS);
    let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
    assert_eq!(env.reset().unwrap().text, "b", "the agent is not shown them");
    assert_eq!(
        (env.expert().as_deref(), env.demonstrate().as_deref(), env.distance()),
        (Some("go"), Some("go"), Some(2))
    );
    env.step("go").unwrap();
    assert_eq!((env.expert(), env.distance()), (None, Some(1)));
    env.step("go").unwrap();
    assert_eq!((env.expert(), env.distance()), (None, None));
    for (hints, why) in [
        (r#","expert":7"#, "expert must be a command, a string"),
        (r#","expert":" ""#, "expert is empty"),
        (r#","distance":-1"#, "distance must be a number of steps"),
    ] {
        let limits = Limits { retries: 0, ..LIMITS };
        let played = connected(&faulty("200 OK", HINTING, answering(vec![hinting(hints)])), limits);
        let error = played.open(&played.task(Split::L0, 0).unwrap()).unwrap().reset().unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    // A server that declares no expert means something else by a distance.
    let played = connected(&faulty("200 OK", SCHEMA, answering(vec![hinting(r#","distance":2.5"#)])), LIMITS);
    let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
    env.reset().unwrap();
    assert_eq!((env.expert(), env.distance()), (None, None));
}

/// A game of three words in their order, with what its expert knows of it.
fn three_words(mut socket: WebSocket<TcpStream>) {
    const WORDS: [&str; 3] = ["ready", "steady", "go"];
    let mut said = 0;
    while let Ok(Message::Text(text)) = socket.read() {
        let request: Value = serde_json::from_str(&text).unwrap();
        match request["type"].as_str().unwrap() {
            "reset" => said = 0,
            "step" => said += usize::from(request["data"]["move"] == WORDS[said]),
            _ => return,
        }
        let won = said == WORDS.len();
        let observation = json!({
            "board": format!("{said} words."), "won": won, "admissible": WORDS, "expert": WORDS.get(said),
            "distance": WORDS.len() - said,
        });
        let data = json!({ "observation": observation, "reward": f64::from(won), "done": won });
        if socket.send(Message::text(json!({ "type": "observation", "data": data }).to_string())).is_err() {
            return;
        }
    }
}

#[test]
fn the_hints_of_a_server_teach_and_label() {
    let runs = tempfile::tempdir().unwrap();
    let url = format!("env.openenv.url={}", faulty("200 OK", HINTING, three_words));
    let set = ["env.suite=openenv", &url, "gcd.mode=generate", "gcd.labels=['oracle']", "sft.steps=30", "sft.games=8"];
    let set = [&set[..], &["sft.lr=0.01", "run.iterations=1", "eval.games=4"]].concat();
    let config = common::runs::tiny(runs.path(), "a", &set);
    let games = suite(&config).unwrap();
    let outcome = train(config, &*games, Existing::Refuse).unwrap();
    let records = uncouple::report::metrics::read(&outcome.folder).unwrap();
    let losses: Vec<f64> = records.iter().filter(|r| r.phase == "sft").map(|r| r.values["loss"]).collect();
    assert!(losses[29] < 0.5 * losses[0], "the demonstrator's commands are learnt: {losses:?}");
    let grpo = records.iter().find(|r| r.phase == "grpo").unwrap();
    assert!(grpo.values["gcd/labels/good"] + grpo.values["gcd/labels/bad"] > 0.0, "the distances label actions");
}

#[test]
fn what_a_server_pays_is_kept() {
    for (data, reward, won) in [
        (r#"{"observation":{"board":"b"},"reward":-0.25,"done":true}"#, -0.25, false),
        (r#"{"observation":{"board":"b"},"reward":10.0,"done":true}"#, 10.0, true),
        (r#"{"observation":{"board":"b"},"reward":0.5,"done":false}"#, 0.5, false),
        (r#"{"observation":{"board":"b"},"reward":true,"done":true}"#, 1.0, true),
        (r#"{"observation":{"board":"b","won":true},"reward":null,"done":true}"#, 1.0, true),
        (r#"{"observation":{"board":"b","won":true},"reward":0.0,"done":true}"#, 0.0, true),
        (r#"{"observation":{"board":"b","won":false},"reward":2.0,"done":true}"#, 2.0, false),
        (r#"{"observation":{"board":"b"},"done":true}"#, 0.0, false),
    ] {
        let answers = vec![observation("a"), Message::text(format!(r#"{{"type":"observation","data":{data}}}"#))];
        let played = connected(&faulty("200 OK", SCHEMA, answering(answers)), LIMITS);
        let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
        let seen = env.reset().and_then(|_| env.step("go")).unwrap_or_else(|e| panic!("{data}: {e}"));
        assert_eq!((seen.reward, seen.won), (reward, won), "{data}");
    }
}

#[test]
fn a_server_that_speaks_unasked_or_floods_is_replaced() {
    let floods = |mut socket: WebSocket<TcpStream>| while socket.send(observation("spam")).is_ok() {};
    let played = connected(&faulty("200 OK", SCHEMA, floods), Limits { retries: 1, ..LIMITS });
    let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
    // A message that comes just when one is expected passes for the answer, so not every step tells.
    let mut play = || env.reset().and_then(|_| (0..10_000).try_for_each(|_| env.step("go").map(drop)));
    play().unwrap_err();
}

#[test]
fn a_replay_that_shows_something_else_fails_the_episode() {
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let moody = move |mut socket: WebSocket<TcpStream>| {
        let mood = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let _ = socket.read();
        let _ = socket.send(observation(&format!("mood {mood}")));
        let _ = socket.read();
    };
    let played = connected(&faulty("200 OK", SCHEMA, moody), LIMITS);
    let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
    assert_eq!(env.reset().unwrap().text, "mood 0");
    let error = env.step("go").unwrap_err().to_string();
    assert!(error.contains("a replay of the episode in a new worker showed something else"), "{error}");
}

#[test]
fn a_pinging_server_is_answered_while_nobody_asks() {
    let pings = |mut socket: WebSocket<TcpStream>| {
        let _ = socket.read();
        let _ = socket.send(observation("a"));
        for _ in 0..3 {
            let _ = socket.send(Message::Ping(vec![7].into()));
            if !matches!(socket.read(), Ok(Message::Pong(_))) {
                return;
            }
        }
        let _ = socket.read();
        let _ = socket.send(observation("still here"));
        std::thread::sleep(Duration::from_secs(60));
    };
    let played = connected(&faulty("200 OK", SCHEMA, pings), Limits { retries: 0, ..LIMITS });
    let mut env = played.open(&played.task(Split::L0, 0).unwrap()).unwrap();
    env.reset().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(env.step("go").unwrap().text, "still here");
}

#[test]
fn it_is_trained_on() {
    let runs = tempfile::tempdir().unwrap();
    let url = format!("env.openenv.url={}", serving(BOUNDS));
    let set = ["env.suite=openenv", &url, "sft.steps=0", "sft.games=2", "run.iterations=2", "env.workers=8"];
    let config = common::runs::tiny(runs.path(), "a", &set);
    let games = suite(&config).unwrap();
    match train(config, &*games, Existing::Refuse) {
        Ok(outcome) => assert!(outcome.summary.env_steps > 0),
        Err(error) => panic!("{error}"),
    }
}

/// The packages that speak the protocol.
const PACKAGES: [&str; 2] = ["openenv-core==0.3.0", "openenv==0.10.0"];

/// A Python with a package, made once below the target folder.
fn python(package: &str) -> Option<PathBuf> {
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package.replace("==", "-"));
    let python = folder.join("bin/python");
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        output.is_ok_and(|o| o.status.success())
    };
    let has = |python: &Path| run(python, &["-c", "import openenv.core, uvicorn"]);
    let there = has(&python)
        || run(Path::new("python3"), &["-m", "venv", folder.to_str()?])
            && run(&python, &["-m", "pip", "install", "-q", package])
            && has(&python);
    if !there {
        // Past the test harness, which shows what a test prints only when it fails.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {package} needs python3 with venv, and `pip install {package}`");
    }
    there.then_some(python)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

#[test]
fn the_reference_client_plays_our_server() {
    for python in PACKAGES.iter().filter_map(|package| python(package)) {
        let household = Household::new(0);
        let task = household.task(Split::L1, 3).unwrap();
        let (commands, expected) = random_walk(&mut *household.open(&task).unwrap(), 6).unwrap();
        let url = serving(BOUNDS);
        let output = Command::new(&python).arg(fixture("openenv_client.py")).arg(url).args(&commands).output().unwrap();
        let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
        let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), expected.len() + 3, "{errors}");
        assert_eq!(lines[0], json!({ "passed": true, "failed": [] }));
        for (line, o) in lines[1..].iter().zip(&expected) {
            let shown = json!({ "text": o.text, "admissible": o.admissible, "won": o.won, "valid": o.valid });
            assert_eq!(*line, json!({ "observation": shown, "reward": o.reward, "done": o.done }));
        }
        let state = &lines[expected.len() + 1];
        assert_eq!((&state["episode_id"], &state["step_count"]), (&json!("mine"), &json!(commands.len())));
        assert_eq!(state["task"], task.id);
        assert!(lines[expected.len() + 2].as_str().unwrap().contains("VALIDATION_ERROR"));
    }
}

#[test]
fn our_client_plays_the_reference_server() {
    for (package, python) in PACKAGES.iter().filter_map(|package| Some((package, python(package)?))) {
        let mut child = Command::new(&python)
            .arg(fixture("openenv_server.py"))
            .arg("2")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let _child = Served(child);
        let played = connected(&format!("http://127.0.0.1:{}", port.trim()), Limits { workers: 2, ..LIMITS });
        let lists = package.contains("0.10");
        let (split, size, first) = if lists { (Split::L1, 7, "test/0") } else { (Split::L0, 128, "seed-1000000000") };
        assert_eq!(played.len(split), Some(size), "{package}");
        let task = played.task(split, 0).unwrap();
        assert_eq!((&task.id[..], &task.kind[..]), (first, if lists { "even" } else { "seed" }));
        // More episodes than sessions, at the same time.
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut env = played.open(&task).unwrap();
                    let begun = env.reset().unwrap();
                    assert_eq!(
                        (&begun.text[..], begun.won),
                        (if lists { "Count to 2." } else { "Count to 3." }, false)
                    );
                    assert_eq!(begun.admissible, ["look", "one more"]);
                    assert!(!env.step("look").unwrap().done);
                    env.step("one more").unwrap();
                    let mut end = env.step("one more").unwrap();
                    if !lists {
                        end = env.step("one more").unwrap();
                    }
                    assert_eq!((end.won, end.done, end.reward), (true, true, 1.0));
                    assert_eq!(end.text.contains("split test"), lists, "{}", end.text);
                });
            }
        });
        let mut env = played.open(&task).unwrap();
        env.reset().unwrap();
        let error = env.step("raise").unwrap_err().to_string();
        assert!(error.contains("counting hurts (EXECUTION_ERROR)"), "{error}");
    }
}
