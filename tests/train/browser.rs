//! The report page in a real browser: Chromium without a window, driven over its debugging protocol. `UNCOUPLE_CHROMIUM` names the
//! program; without it these tests say that they are skipped.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};
use uncouple::gcd::theory::Measured;
use uncouple::report::metrics::Record;
use uncouple::report::page::{self, Heat, PageRun};
use uncouple::report::results::Summary;
use uncouple::report::trajectories::{
    EpisodeRecord, EvidenceRecord, JudgmentRecord, SuggestionRecord, Trajectories, TrajectoryReader, TurnRecord,
};

struct Chromium {
    process: Child,
    socket: WebSocket<TcpStream>,
    next: u64,
    /// The page's session.
    session: String,
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Drop for Chromium {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

impl Chromium {
    /// `None`, and a line that says so, where no browser is named.
    fn start() -> Option<Chromium> {
        let Some(program) = std::env::var_os("UNCOUPLE_CHROMIUM") else {
            eprintln!("SKIPPED: the report page is not tested in a browser; set UNCOUPLE_CHROMIUM=/usr/bin/chromium");
            return None;
        };
        let profile = tempfile::tempdir().unwrap();
        let mut process = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stderr(Stdio::piped())
            .spawn()
            .expect("UNCOUPLE_CHROMIUM names a program");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let url =
            lines.find_map(|line| Some(line.split_once("listening on ")?.1.to_string())).expect("Chromium listens");
        // Its later lines would fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let address = url.trim_start_matches("ws://").split('/').next().unwrap().to_string();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (socket, _) = tungstenite::client(&url[..], stream).unwrap();
        let mut chromium =
            Chromium { process, socket, next: 0, session: String::new(), events: Vec::new(), _profile: profile };
        let target = chromium.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached = chromium.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        chromium.session = attached["sessionId"].as_str().unwrap().into();
        ["Page.enable", "Runtime.enable", "Log.enable"]
            .iter()
            .for_each(|method| drop(chromium.call(method, json!({}))));
        Some(chromium)
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": params});
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        self.socket.send(Message::text(message.to_string())).unwrap();
        loop {
            let text = self.socket.read().unwrap().into_text().unwrap();
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.next {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    /// The value of an expression of the page, awaited.
    fn value(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let answer = self.call("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Opens a page and waits until it is ready; how long it took, in ms since navigation.
    fn open(&mut self, file: &Path) -> u64 {
        self.call("Page.navigate", json!({"url": format!("file://{}", file.display())}));
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            let ready = self.value("document.documentElement ? document.documentElement.dataset.ready || '' : ''");
            if let Ok(ms) = ready.as_str().unwrap_or_default().parse() {
                return ms;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the page is not ready after 30 s: {:?}", self.problems());
    }

    /// Errors, console lines, dialogs, refused resources.
    fn problems(&self) -> Vec<String> {
        let bad =
            ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Page.javascriptDialogOpening"];
        self.events.iter().filter(|e| bad.iter().any(|name| e["method"] == *name)).map(Value::to_string).collect()
    }
}

const EVIL: &str = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u{202e}";

fn turn(at: usize, likely: bool) -> TurnRecord {
    TurnRecord {
        observation: format!("You are at shelf {at}. {EVIL} You see a mug, a lamp and a plate; the drawer is closed."),
        action: format!("go shelf {at} {EVIL}"),
        command: Some("go shelf".into()),
        valid: !at.is_multiple_of(3),
        prompt: 0..6 * at + 4,
        sampled: 6 * at + 4..6 * at + 6,
        q: if likely { 0.9 } else { 0.2 },
        label: Some(if at.is_multiple_of(2) { "bad" } else { "good" }.into()),
        flaw: at.is_multiple_of(2).then(|| "repeated".into()),
        advantage: Some(-0.5),
        judgments: vec![JudgmentRecord { label: "bad".into(), verdict: Some("good".into()), text: EVIL.into() }],
        ..TurnRecord::default()
    }
}

/// A run folder's database with `iterations` × 2 groups of 8 episodes of 10 turns, and three evaluations.
fn fill(run: &Path, iterations: u64) -> TrajectoryReader {
    let mut kept = Trajectories::open(run, &[]).unwrap();
    let episode = |iteration, phase: &str, group, sample| EpisodeRecord {
        iteration,
        phase: phase.into(),
        split: if phase == "grpo" { "train".into() } else { format!("L{}", group % 3) },
        task: format!("place/{group}/{EVIL}"),
        kind: ["place", "heat"][group as usize % 2].into(),
        group,
        sample,
        success: (u64::from(group + sample) + iteration).is_multiple_of(3),
        finish: "won".into(),
        tokens: (0..64).collect(),
        turns: (0..10).map(|at| turn(at, group == 0)).collect(),
        ..EpisodeRecord::default()
    };
    for iteration in 1..=iterations {
        let all: Vec<EpisodeRecord> = (0..16).map(|i| episode(iteration, "grpo", i / 8, i % 8)).collect();
        kept.append(&all).unwrap();
    }
    for iteration in [0, iterations / 2, iterations] {
        kept.append(&(0..30).map(|i| episode(iteration, "eval", i, 0)).collect::<Vec<_>>()).unwrap();
    }
    let observation: String = turn(2, true).observation.chars().take(200).collect();
    let evidence =
        EvidenceRecord { observation, action: "go shelf".into(), flaw: "repeated".into(), ..EvidenceRecord::default() };
    kept.suggest(2, &[SuggestionRecord { text: format!("go less. {EVIL}"), evidence: vec![evidence] }]).unwrap();
    TrajectoryReader::open(run).unwrap().unwrap()
}

fn write(run: &Path, iterations: u64) -> std::path::PathBuf {
    let reader = fill(run, iterations);
    let mut measured = Measured::default();
    (0..40).for_each(|i| measured.add(&[(0.025 * f64::from(i), -0.2), (0.3, 0.1)]));
    let summary = Summary { flawed: measured.points(), flawed_fit: measured.fit(), ..Summary::default() };
    let records: Vec<Record> = (1..=iterations)
        .flat_map(|i| {
            let x = i as f64;
            let grpo =
                Record::new("grpo", i, x).with("reward", x.sin()).with("loss", 1.0 / x).with("kl", 0.0).with(EVIL, x);
            let coupling = grpo.with("coupling/pp", 0.1).with("coupling/nn", 0.2).with("coupling/pn", 0.05 * x);
            let coupling = coupling.with("coupling/pn_error", 0.01).with("coupling/same_verb/pn", 0.3);
            [coupling.with("gcd/accuracy", 0.5), Record::new("eval", i, x).with("consistency/high", 0.5)]
        })
        .collect();
    let page = page::render(&PageRun {
        name: EVIL,
        config: EVIL,
        summary: &summary,
        finished: true,
        seed: 0,
        iterations: iterations as u32,
        records: &records,
        heat: Some(Heat { when: "at the end".into(), rows: vec![(EVIL.into(), [Some(0.1), Some(-0.2), None])] }),
        trajectories: Some(&reader),
        notice: None,
        threshold: 0.5,
        decode: &|tokens| format!("{} {EVIL} ", tokens.len()),
    })
    .unwrap();
    assert!(page.len() <= 2_000_000, "{} bytes", page.len());
    let file = run.join("report.html");
    std::fs::write(&file, page).unwrap();
    file
}

#[test]
fn the_page_draws_every_figure_filters_and_runs_nothing_else() {
    let Some(mut chromium) = Chromium::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), 6);
    chromium.open(&file);
    chromium.value("document.querySelectorAll('details').forEach((d) => (d.open = true))");
    chromium.value("new Promise((done) => setTimeout(done, 300))");
    // A figure that is drawn has ink.
    let drawn = "[...document.querySelectorAll('figure')].map((f) => {
        const c = f.querySelector('canvas');
        const pixels = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        return f.getAttribute('aria-label') + (pixels.some((p) => p > 0) ? '' : ' EMPTY');
    })";
    let figures = chromium.value(drawn);
    let figures: Vec<&str> = figures.as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
    assert!(figures.iter().all(|f| !f.ends_with("EMPTY")), "{figures:?}");
    for title in [
        "Success",
        "Cosine of the gradients",
        "Flawed actions against",
        "L0",
        "Consistency",
        "In training",
        "Return",
        "Loss",
    ] {
        assert!(figures.iter().any(|f| f.starts_with(title)), "{title}: {figures:?}");
    }
    assert!(chromium.value("document.body.textContent").as_str().unwrap().contains("Constant throughout: kl = 0."));

    let count = |c: &mut Chromium| c.value("document.querySelectorAll('.list button').length").as_u64().unwrap();
    assert_eq!(count(&mut chromium), 12);
    for (control, choice, want) in
        [("flaws", 2, 6), ("flaws", 0, 12), ("outcome", 1, 12), ("outcome", 3, 0), ("outcome", 0, 12)]
    {
        chromium.value(&format!(
            "{{ const s = document.querySelector('select[aria-label={control}]'); s.selectedIndex = {choice}; \
             s.dispatchEvent(new Event('change')); }}"
        ));
        assert_eq!(count(&mut chromium), want, "{control} {choice}");
    }
    // From a suggestion to a turn that it rests on, and back.
    let found = "(async () => { document.querySelector('.suggestion button').click();
        for (let i = 0; i < 50 && !document.querySelector('td.found'); i++) await new Promise((d) => setTimeout(d, 50));
        const cell = document.querySelector('td.found');
        return [cell.querySelector('.action').textContent, cell.querySelector('a').getAttribute('href'),
                document.querySelectorAll('.siblings thead th').length]; })()";
    let found = chromium.value(found);
    assert!(found[0].as_str().unwrap().starts_with("go shelf 2 <img src=x") && found[1] == "#suggestion-0", "{found}");
    assert_eq!(found[2], 9, "eight siblings side by side");
    chromium.value("document.querySelectorAll('.siblings details').forEach((d) => (d.open = true))");
    chromium.value("new Promise((done) => setTimeout(done, 200))");
    let prompt = chromium.value("document.querySelector('td.found .prompt pre').textContent");
    assert!(
        prompt.as_str().unwrap().starts_with("4 <img src=x") && prompt.as_str().unwrap().contains(r"\u{202e}"),
        "{prompt}"
    );
    assert_eq!(chromium.value("document.querySelectorAll('img').length"), 0);
    assert_eq!(chromium.problems(), Vec::<String>::new());
}

#[test]
fn twenty_thousand_turns_open_within_a_second() {
    let Some(mut chromium) = Chromium::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), 125);
    let size = std::fs::metadata(&file).unwrap().len();
    // The best of three: other programs may be running.
    let ms = (0..3).map(|_| chromium.open(&file)).min().unwrap();
    eprintln!("{size} bytes, ready after {ms} ms");
    assert!(ms < 1000, "{ms} ms");
    assert_eq!(chromium.problems(), Vec::<String>::new());
}
