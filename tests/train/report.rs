//! Metrics, TensorBoard events, trajectories, statistics, the final table, the summary and the report page.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use uncouple::gcd::theory::Measured;
use uncouple::report::metrics::{self, Metrics, Record};
use uncouple::report::page::{self, PageRun};
use uncouple::report::results::{self, EvalEpisode, EvalSummary, Evaluation, SplitTable, Summary, TypeRow, Unreadable};
use uncouple::report::stats;
use uncouple::report::trajectories::{
    EpisodeIndex, EpisodeRecord, EvidenceRecord, JudgmentRecord, SuggestionRecord, Trajectories, TrajectoryReader,
    TurnRecord,
};

fn record(phase: &str, step: u64, loss: f64) -> Record {
    Record::new(phase, step, step as f64).with("loss", loss)
}

#[test]
fn metrics_are_one_json_object_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), |_| true).unwrap();
    metrics.append(&record("sft", 1, 0.5).with("lr", 1e-3)).unwrap();
    metrics.append(&record("sft", 2, f64::NAN)).unwrap();
    let text = fs::read_to_string(dir.path().join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], r#"{"step":1,"phase":"sft","seconds":1.0,"loss":0.5,"lr":0.001}"#);
    assert_eq!(lines[1], r#"{"step":2,"phase":"sft","seconds":2.0,"loss":null}"#);
    let read = metrics::read(dir.path()).unwrap();
    assert_eq!(read[0], record("sft", 1, 0.5).with("lr", 1e-3));
    assert!(read[1].values.is_empty());
}

#[test]
fn resuming_drops_later_records_and_a_torn_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), |_| true).unwrap();
    for (phase, step) in [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)] {
        metrics.append(&record(phase, step, step as f64)).unwrap();
    }
    drop(metrics);
    let path = dir.path().join("metrics.jsonl");
    fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"step\":4,\"pha").unwrap();

    let mut metrics = Metrics::open(dir.path(), |r| r.phase != "grpo" || r.step <= 1).unwrap();
    metrics.append(&record("grpo", 2, 9.0)).unwrap();
    let steps: Vec<(String, u64)> = metrics::read(dir.path()).unwrap().into_iter().map(|r| (r.phase, r.step)).collect();
    assert_eq!(steps, [("sft".into(), 1), ("sft".into(), 2), ("grpo".into(), 1), ("grpo".into(), 2)]);
    let events = events(dir.path());
    assert_eq!(events.len(), 4, "the events hold what the metrics hold");
    assert_eq!(events[3], (2, vec![("grpo/loss".into(), 9.0)]));
}

#[test]
fn a_full_disk_while_appending_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    Metrics::open(dir.path(), |_| true).unwrap().append(&record("sft", 1, 1.0)).unwrap();
    let path = dir.path().join(".metrics.jsonl.unfinished");
    std::os::unix::fs::symlink("/dev/full", path).unwrap();
    let error = Metrics::open(dir.path(), |_| true).err().expect("the disk is full");
    assert!(error.is_disk_full() && error.to_string().contains("metrics.jsonl"), "{error}");
    assert_eq!(metrics::read(dir.path()).unwrap().len(), 1, "nothing is lost");
}

/// Reads event files back with a decoder of its own: (step, [(tag, value)]), the header left out.
fn events(run: &Path) -> Vec<(u64, Vec<(String, f32)>)> {
    let mut files: Vec<_> = fs::read_dir(run.join("tensorboard")).unwrap().map(|f| f.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let bytes = fs::read(files.remove(0)).unwrap();
    let (mut at, mut events) = (&bytes[..], Vec::new());
    while !at.is_empty() {
        let length = u64::from_le_bytes(at[..8].try_into().unwrap()) as usize;
        assert_eq!(at[8..12], masked_crc(&at[..8]).to_le_bytes());
        let data = &at[12..12 + length];
        assert_eq!(at[12 + length..16 + length], masked_crc(data).to_le_bytes());
        events.push(fields(data));
        at = &at[16 + length..];
    }
    let header = events.remove(0);
    assert!(header.iter().any(|(field, v)| *field == 3 && v == b"brain.Event:2"), "TensorBoard's version record first");
    let event = |fields: Vec<(u64, Vec<u8>)>| {
        let get = |wanted: u64| fields.iter().find(|(f, _)| *f == wanted).map(|(_, v)| v.clone()).unwrap();
        let wall = f64::from_le_bytes(get(1).try_into().unwrap());
        assert!(wall > 1.6e9, "wall time in seconds since 1970: {wall}");
        let step = u64::from_le_bytes(get(2).try_into().unwrap());
        let values = self::fields(&get(5)).into_iter().map(|(_, value)| {
            let value = self::fields(&value);
            (String::from_utf8(value[0].1.clone()).unwrap(), f32::from_le_bytes(value[1].1[..].try_into().unwrap()))
        });
        (step, values.collect())
    };
    events.into_iter().map(event).collect()
}

/// The fields of a protobuf message as (number, bytes); a varint comes as its eight bytes.
fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !data.is_empty() {
        let key = varint(&mut data);
        let value = match key & 7 {
            0 => varint(&mut data).to_le_bytes().to_vec(),
            1 => data.split_off(..8).unwrap().to_vec(),
            2 => {
                let length = varint(&mut data) as usize;
                data.split_off(..length).unwrap().to_vec()
            }
            5 => data.split_off(..4).unwrap().to_vec(),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, value));
    }
    fields
}

fn varint(data: &mut &[u8]) -> u64 {
    let length = data.iter().position(|b| b & 0x80 == 0).unwrap() + 1;
    let bytes = data.split_off(..length).unwrap();
    bytes.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
}

/// By polynomial division on the reflected polynomial, one bit at a time, without tables.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let out = (crc ^ u32::from(byte >> bit)) & 1;
            crc >>= 1;
            if out == 1 {
                crc ^= 0x1EDC_6F41_u32.reverse_bits();
            }
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[test]
fn tensorboard_events_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut metrics = Metrics::open(dir.path(), |_| true).unwrap();
    metrics.append(&record("sft", 300, 0.25).with("grad_norm", 2.0)).unwrap();
    metrics.append(&record("grpo", 1, -1.5)).unwrap();
    assert_eq!(
        events(dir.path()),
        [(300, vec![("sft/grad_norm".into(), 2.0), ("sft/loss".into(), 0.25)]), (1, vec![("grpo/loss".into(), -1.5)])]
    );
}

fn episode(iteration: u64, success: bool, actions: &[&str]) -> EpisodeRecord {
    let turn = |(i, action): (usize, &&str)| TurnRecord {
        observation: "You see a <b>mug</b>.".into(),
        action: action.to_string(),
        command: Some(action.to_string()),
        valid: true,
        prompt: 0..4 * i + 1,
        sampled: 4 * i + 1..4 * i + 4,
        logprob_sum: -1.25,
        q: 0.75,
        label: Some("bad".into()),
        flaw: Some("repeated".into()),
        reward: 0.0,
        advantage: Some(0.5),
        judgments: vec![
            JudgmentRecord { label: "bad".into(), verdict: Some("good".into()), text: "I would look.".into() },
            JudgmentRecord { label: "bad".into(), verdict: None, text: "mug mug".into() },
        ],
    };
    EpisodeRecord {
        iteration,
        phase: "grpo".into(),
        split: "train".into(),
        task: "clean-and-place/3/17".into(),
        kind: "clean-and-place".into(),
        group: 1,
        sample: 2,
        reward: f64::from(u8::from(success)),
        success,
        finish: "won".into(),
        seconds: 0.5,
        repeats: 1,
        loops: 2,
        suggestions: vec!["do not look the same twice.".into()],
        tokens: (0..4 * actions.len() as u32).collect(),
        turns: actions.iter().enumerate().map(turn).collect(),
    }
}

/// All episodes of training, from the database.
fn played(run: &Path) -> Vec<EpisodeRecord> {
    let kept = TrajectoryReader::open(run).unwrap().expect("there is a database");
    let mut groups: Vec<(u64, u32)> =
        kept.index("grpo", 0.5).unwrap().iter().map(|episode| (episode.iteration, episode.group)).collect();
    groups.dedup();
    groups.into_iter().flat_map(|(iteration, group)| kept.group("grpo", iteration, group).unwrap()).collect()
}

#[test]
fn trajectories_read_back_and_resume_deletes_what_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    assert!(TrajectoryReader::open(dir.path()).unwrap().is_none());
    let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
    let all = [episode(1, true, &["look", "take mug"]), episode(2, false, &["look"; 5]), episode(3, false, &[])];
    kept.append(&all).unwrap();
    let item = EvidenceRecord {
        task: "a/1".into(),
        observation: "x".into(),
        action: "look".into(),
        ..EvidenceRecord::default()
    };
    let made = SuggestionRecord { text: "look less.".into(), evidence: vec![item.clone(), item] };
    for iteration in [2, 3] {
        kept.suggest(iteration, std::slice::from_ref(&made)).unwrap();
    }
    assert_eq!(played(dir.path()), all);
    let reader = TrajectoryReader::open(dir.path()).unwrap().unwrap();
    assert_eq!(reader.suggestions().unwrap(), [(2, made.clone()), (3, made.clone())]);
    let index = reader.index("grpo", 0.7).unwrap();
    let counts = |e: &EpisodeIndex| (e.turns, e.flawed, e.likely, e.judged);
    assert_eq!(index.iter().map(counts).collect::<Vec<_>>(), [(2, 2, 2, 2), (5, 5, 5, 5), (0, 0, 0, 0)]);
    assert_eq!(counts(&reader.index("grpo", 0.8).unwrap()[0]), (2, 2, 0, 2));
    let confusion = reader.confusion().unwrap();
    assert_eq!(confusion.iter().map(|c| c.count).sum::<u64>(), 14);
    drop(kept);

    let kept = Trajectories::open(dir.path(), &[("eval", 0), ("grpo", 3)]).unwrap();
    assert_eq!(played(dir.path()), all[..2]);
    drop(kept);
    let db = rusqlite::Connection::open(dir.path().join("trajectories.sqlite")).unwrap();
    let count =
        |table: &str| db.query_row(&format!("select count(*) from {table}"), [], |r| r.get::<_, i64>(0)).unwrap();
    let tables = ["episodes", "turns", "judgments", "suggestions", "evidence"].map(count);
    assert_eq!(tables, [2, 7, 14, 1, 2], "what belongs to an episode or a suggestion goes with it");
}

/// The SQL of the page that explains the tables.
fn documented_queries() -> Vec<String> {
    let page = include_str!("../../docs/trajectories.md");
    page.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_string()).collect()
}

#[test]
fn the_documented_queries_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
    let won = EpisodeRecord { sample: 3, ..episode(2, true, &["look", "take mug"]) };
    kept.append(&[episode(2, false, &["look"; 5]), won]).unwrap();
    let item = EvidenceRecord {
        observation: "You see a <b>mug</b>.".into(),
        action: "look".into(),
        ..EvidenceRecord::default()
    };
    kept.suggest(2, &[SuggestionRecord { text: "look less.".into(), evidence: vec![item] }]).unwrap();
    let db = rusqlite::Connection::open(dir.path().join("trajectories.sqlite")).unwrap();
    let queries = documented_queries();
    assert_eq!(queries.len(), 10);
    for query in queries {
        let mut statement = db.prepare(&query).unwrap_or_else(|e| panic!("{query}: {e}"));
        let rows = statement.query_map([], |row| row.get::<_, rusqlite::types::Value>(0)).unwrap();
        assert!(rows.map(Result::unwrap).count() > 0, "{query}: nothing found");
    }
    let prompt: String = db.query_row(&documented_queries()[9], [], |row| row.get(0)).unwrap();
    assert_eq!(prompt, "[0,1,2,3,4]");
}

#[test]
fn a_locked_database_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
    let other = rusqlite::Connection::open(dir.path().join("trajectories.sqlite")).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let error = kept.append(&[episode(1, true, &["look"])]).unwrap_err().to_string();
    assert!(error.contains("trajectories.sqlite") && error.contains("another program holds it locked"), "{error}");
    other.execute_batch("rollback").unwrap();
    kept.append(&[episode(1, true, &["look"])]).unwrap();
}

#[test]
fn something_else_under_the_database_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("trajectories.sqlite"), "not a database, but long enough to look at".repeat(40)).unwrap();
    let error = Trajectories::open(dir.path(), &[]).err().unwrap().to_string();
    assert!(error.contains("trajectories.sqlite") && error.contains("move the file away"), "{error}");
}

#[test]
fn a_database_says_which_schema_it_has_and_another_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trajectories.sqlite");
    Trajectories::open(dir.path(), &[]).unwrap().append(&[episode(1, true, &["look"])]).unwrap();
    let sql = |sql: &str| rusqlite::Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    let text = |sql: &str| -> String {
        rusqlite::Connection::open(&file).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    };
    let schema = "select value from meta where key = 'schema'";
    assert_eq!(text(schema), text("select cast(user_version as text) from pragma_user_version"));
    assert_eq!(text("select value from meta where key = 'program'"), concat!("uncouple ", env!("CARGO_PKG_VERSION")));
    Trajectories::open(dir.path(), &[]).unwrap();
    for (version, who) in
        [(999, "a newer version of uncouple (schema 999"), (0, "an older version of uncouple (schema 0")]
    {
        sql(&format!("pragma user_version = {version}"));
        let before = fs::read(&file).unwrap();
        let error = Trajectories::open(dir.path(), &[("grpo", 0)]).err().unwrap().to_string();
        assert!(error.contains("trajectories.sqlite") && error.contains(who), "{error}");
        let read = TrajectoryReader::open(dir.path()).err().unwrap().to_string();
        assert!(read.contains(who), "{read}");
        assert_eq!(fs::read(&file).unwrap(), before, "it is left as it is");
    }
    sql(&format!("pragma user_version = {}", text(schema)));
    assert_eq!(played(dir.path()).len(), 1);
}

#[test]
fn intervals_agree_with_published_values() {
    // Newcombe (1998), table I, method 3 (Wilson without continuity correction).
    for (successes, trials, low, high) in
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
    {
        let [l, h] = stats::wilson(successes, trials);
        assert!((l - low).abs() < 1e-4 && (h - high).abs() < 1e-4, "{successes}/{trials}: {l} {h}");
    }
    assert_eq!(stats::wilson(0, 0), [0.0, 1.0]);
    let [low, high] = stats::normal(&[1.0, 2.0, 3.0, 4.0]);
    let half = 1.959964 * (5.0f64 / 3.0).sqrt() / 2.0;
    assert!((low - (2.5 - half)).abs() < 1e-6 && (high - (2.5 + half)).abs() < 1e-6);
    assert_eq!((stats::mean(&[]), stats::std(&[7.0]), stats::normal(&[7.0])), (0.0, 0.0, [7.0, 7.0]));
    // Clusters of equal size: the ratio is the mean of the shares, and so is its interval.
    let (rate, ci) = stats::ratio(&[1.0, 3.0, 2.0], &[4.0, 4.0, 4.0]);
    let shares = stats::normal(&[0.25, 0.75, 0.5]);
    assert!((rate - 0.5).abs() < 1e-12 && (ci[0] - shares[0]).abs() < 1e-12 && (ci[1] - shares[1]).abs() < 1e-12);
    assert_eq!(stats::ratio(&[0.0], &[0.0]), (0.0, [0.0, 0.0]));
    // The same of clusters as they come; one without a whole is none.
    let mut clusters = stats::Clusters::default();
    assert_eq!((clusters.value(), clusters.interval()), (None, None));
    for (part, whole) in [(1.0, 4.0), (0.0, 0.0), (3.0, 5.0), (2.0, 3.0)] {
        clusters.add(part, whole);
    }
    let (rate, ci) = stats::ratio(&[1.0, 3.0, 2.0], &[4.0, 5.0, 3.0]);
    let got = clusters.interval().unwrap();
    assert!(clusters.value() == Some(rate) && (got[0] - ci[0]).abs() < 1e-12 && (got[1] - ci[1]).abs() < 1e-12);
}

proptest! {
    #[test]
    fn wilson_holds_the_estimate_and_narrows(successes in 0u64..100, more in 0u64..100) {
        let trials = successes + more + 1;
        let p = successes as f64 / trials as f64;
        let [low, high] = stats::wilson(successes, trials);
        prop_assert!(0.0 <= low && low <= p && p <= high && high <= 1.0);
        let [low4, high4] = stats::wilson(4 * successes, 4 * trials);
        prop_assert!(high4 - low4 < high - low);
    }
}

fn evaluation(wins: usize) -> Evaluation {
    let episode = |i: usize| EvalEpisode { success: i < wins, turns: 4 + (i % 3) as u32, repeats: 1, loops: 2 };
    ["L0", "L1", "L2"].into_iter().map(|split| (split.to_string(), (0..20).map(episode).collect())).collect()
}

#[test]
fn the_table_sets_cold_start_against_final() {
    let (before, after) = (evaluation(5), evaluation(15));
    let rows = results::rows(&[("cold start", &before), ("final", &after)]);
    let names: Vec<(&str, &str)> = rows.iter().map(|r| (&r.split[..], &r.stage[..])).collect();
    assert_eq!(names[..3], [("L0", "cold start"), ("L0", "final"), ("L1", "cold start")]);
    let table = results::table(&rows);
    assert!(
        table.contains("75.0 [53.1, 88.8]") && table.contains("20.2 ± 1.5") && table.contains("40.4 ± 3.0"),
        "{table}"
    );
    assert!(table.find("success") < table.find("repeats") && table.lines().all(|l| l.chars().count() <= 80), "{table}");
    assert!(!table.contains('\u{1b}'), "no colours");
    let json = serde_json::to_value(&rows[1]).unwrap();
    assert_eq!((&json["split"], &json["stage"], &json["games"]), (&"L0".into(), &"final".into(), &20.into()));
    assert_eq!(json["success"]["value"], 0.75);
    let nothing = SplitTable::new(&[]);
    assert_eq!((nothing.games, nothing.success.value), (0, 0.0));
}

#[test]
fn unreadable_turns_and_task_types_are_shares_with_their_counts() {
    let unreadable = Unreadable::new(&[vec!["empty", "too-long"], vec![], vec!["empty"]], &[4, 4, 2]);
    assert_eq!((unreadable.turns, unreadable.rate.value), (10, 0.3));
    assert_eq!(unreadable.reasons, BTreeMap::from([("empty".into(), 2), ("too-long".into(), 1)]));
    let table = results::unreadable_table(&BTreeMap::from([("L0".into(), unreadable)]));
    assert!(table.contains("30.0 [") && table.contains("empty 2, too-long 1"), "{table}");
    assert_eq!(Unreadable::new(&[], &[]).rate.value, 0.0);
    let row = TypeRow::new("L2".into(), "heat\u{1b}[31m", 3, 4);
    let json = serde_json::to_value(&row).unwrap();
    assert_eq!((&json["type"], &json["success"]["value"]), (&"heat\u{1b}[31m".into(), &0.75.into()));
    let table = results::type_table(&[row]);
    assert!(table.contains("75.0 [30.1, 95.4]") && !table.contains('\u{1b}'), "{table}");
}

#[test]
fn seconds_add_up_by_phase_and_part() {
    let of = |phase: &str, rollout: f64| Record::new(phase, 1, 0.0).with("seconds/rollout", rollout);
    let records = [of("grpo", 1.0).with("seconds/gcd_share", 0.5), of("grpo", 2.0), of("eval", 4.0).with("loss", 8.0)];
    let want = [("eval/rollout".to_string(), 4.0), ("grpo/rollout".into(), 3.0)];
    assert_eq!(metrics::phase_seconds(&records), BTreeMap::from(want));
}

#[test]
fn the_summary_has_exactly_the_documented_form() {
    let mut summary = Summary { seconds: 1.5, train_steps: 2, env_steps: 3, tokens: 4, ..Summary::default() };
    assert_eq!(
        serde_json::to_string(&summary).unwrap(),
        r#"{"seconds":1.5,"train_steps":2,"env_steps":3,"tokens":4}"#,
        "parts that did not run are absent"
    );
    let evaluation = BTreeMap::from([("L0".to_string(), evaluation(5).remove("L0").unwrap())]);
    summary.eval = EvalSummary { last: results::summarise(&evaluation), ..EvalSummary::default() };
    let json = serde_json::to_value(&summary).unwrap();
    let l0 = json["eval"]["final"]["L0"].as_object().unwrap();
    let keys: Vec<&String> = l0.keys().collect();
    assert_eq!(keys, ["success", "ci", "games", "repeat_rate", "loop_rate", "episode_length"]);
    assert_eq!((&l0["success"], &l0["games"]), (&0.25.into(), &20.into()));
    assert_eq!(json["eval"].as_object().unwrap().len(), 1);
    assert_eq!(serde_json::from_value::<Summary>(json).unwrap(), summary);
}

/// A page of this, with nothing else.
fn page_with(summary: &Summary, records: &[Record], trajectories: Option<&TrajectoryReader>) -> String {
    page::render(&PageRun {
        name: "a",
        config: "",
        summary,
        finished: true,
        seed: 7,
        iterations: 2,
        records,
        heat: None,
        trajectories,
        notice: None,
        threshold: 0.5,
        decode: &|tokens| format!("{tokens:?}"),
    })
    .unwrap()
}

/// What is packed in the element `id` of a page.
fn unpacked(page: &str, id: &str) -> serde_json::Value {
    let start = format!("id=\"{id}\">");
    let at = page.find(&start).unwrap_or_else(|| panic!("{id} is not there")) + start.len();
    let text = &page[at..at + page[at..].find('<').unwrap()];
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
    serde_json::from_reader(flate2::read::GzDecoder::new(&bytes[..])).unwrap()
}

#[test]
fn the_report_page_is_self_contained_and_escapes_everything() {
    // Markup, an escape sequence of terminals, and a mark that reverses what follows.
    let evil = "</script><script>alert('x')</script>\u{1b}[31m\u{202e}\r";
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
    let mut bad = episode(1, false, &[evil]);
    (bad.task, bad.finish, bad.split, bad.kind) = (evil.into(), evil.into(), evil.into(), evil.into());
    bad.turns[0].observation = evil.into();
    let evaluated = |iteration, success| EpisodeRecord { iteration, success, phase: "eval".into(), ..bad.clone() };
    kept.append(&[bad.clone(), evaluated(0, false), evaluated(1, true)]).unwrap();
    let item = EvidenceRecord { observation: evil.into(), action: evil.into(), ..EvidenceRecord::default() };
    kept.suggest(1, &[SuggestionRecord { text: evil.into(), evidence: vec![item] }]).unwrap();
    let reader = TrajectoryReader::open(dir.path()).unwrap().unwrap();
    let records: Vec<Record> = (1..50)
        .flat_map(|i| {
            [
                record("sft", i, 1.0 / i as f64),
                record("grpo", i, f64::NAN).with("reward", i as f64).with(evil, i as f64),
            ]
        })
        .collect();
    let summary = Summary { train_steps: 7, ..Summary::default() };
    let page = page::render(&PageRun {
        name: evil,
        config: evil,
        summary: &summary,
        finished: false,
        seed: 7,
        iterations: 99,
        records: &records,
        heat: None,
        trajectories: Some(&reader),
        notice: Some(evil.into()),
        threshold: 0.5,
        decode: &|_| evil.into(),
    })
    .unwrap();
    assert!(!page.contains("alert('"), "nothing of it is in the page as it was written");
    assert!(page.contains("&lt;script&gt;") && page.contains(r"\u{1b}[31m\u{202e}\u{d}"));
    // The page's own code holds no such character either.
    assert!(!page.contains(|c: char| c.is_control() && c != '\n' && c != '\t' || c == '\u{202e}'), "nothing unseen");
    let policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'sha256-";
    assert!(page.find(policy) < page.find("<title>") && page.contains(policy), "before anything it is to hold back");
    assert!(!page.contains("unsafe-inline") && !page.contains("unsafe-eval"));
    for link in [" src=", "url(", "@import", "href=\"http"] {
        assert!(!page.contains(link), "{link}: an outside resource");
    }
    assert!(page.contains("not finished: 49 of 99 GRPO iterations") && page.contains("7 training steps"));
    assert!(page.contains("1 games gained and 0 lost of 1"), "{page}");

    let data = unpacked(&page, "data");
    let titles = |subject: &serde_json::Value| -> Vec<String> {
        subject["figures"].as_array().unwrap().iter().map(|f| f["title"].as_str().unwrap().into()).collect()
    };
    let subjects = data["subjects"].as_array().unwrap();
    let all: Vec<(&str, Vec<String>)> = subjects.iter().map(|s| (s["title"].as_str().unwrap(), titles(s))).collect();
    let want = [
        ("Return and success", vec!["Return".to_string()]),
        ("Other metrics", vec![evil.to_string()]),
        ("Cold start", vec!["Loss".to_string()]),
    ];
    assert_eq!(all, want, "NaN draws nothing");
    assert_eq!(data["browser"]["groups"][0]["task"], evil, "as it is: the page's script makes it text");
    assert_eq!(data["success"][0]["lines"][0]["interval"][1].as_array().unwrap().len(), 2);
    let members = unpacked(&page, "text-0");
    let turn = &members[0]["turns"][0];
    assert_eq!((&turn["action"], &turn["q"], &turn["flaw"]), (&evil.into(), &0.75.into(), &"repeated".into()));
    assert_eq!(turn["judgments"][1], serde_json::json!(["bad", null, "mug mug"]));
}

#[test]
fn a_large_run_is_told_by_groups_of_every_iteration() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = Trajectories::open(dir.path(), &[]).unwrap();
    let actions: Vec<String> = (0..20).map(|i| format!("go shelf {i}")).collect();
    let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
    for iteration in 1..=60 {
        let all: Vec<EpisodeRecord> = (0..32)
            .map(|i| EpisodeRecord { group: i / 8, sample: i % 8, ..episode(iteration, i % 3 == 0, &actions) })
            .collect();
        kept.append(&all).unwrap();
    }
    kept.suggest(7, &[SuggestionRecord::default()]).unwrap();
    let page = page_with(&Summary::default(), &[], TrajectoryReader::open(dir.path()).unwrap().as_ref());
    let index = unpacked(&page, "data")["browser"].clone();
    let groups = index["groups"].as_array().unwrap();
    let iterations: std::collections::BTreeSet<u64> =
        groups.iter().map(|group| group["iteration"].as_u64().unwrap()).collect();
    assert_eq!((groups.len(), iterations.len()), (125, 60), "20,000 turns, of every iteration");
    assert_eq!((&index["of_groups"], &index["of_turns"]), (&240.into(), &38_400.into()));
    assert!(page.len() < 2_000_000, "{}", page.len());
    assert_eq!(unpacked(&page, "text-124")[0]["turns"].as_array().unwrap().len(), 20);
}

/// The page of a run whose groups took these flawed actions (probability, advantage).
fn page_of(groups: &[&[(f64, f64)]]) -> String {
    let mut measured = Measured::default();
    groups.iter().for_each(|group| measured.add(group));
    let summary = Summary { flawed: measured.points(), flawed_fit: measured.fit(), ..Summary::default() };
    page_with(&summary, &[], None)
}

#[test]
fn what_the_report_says_of_flawed_actions_follows_the_data() {
    // As theory has it, with r = 0.5 in every group but for noise.
    let group = |q: f64, noise: f64| [(q, 0.5 * (q - 1.0) + noise), (q, 0.5 * (q - 1.0) - noise / 2.0)];
    let costly: Vec<_> = (0..40).map(|i| group(0.025 * f64::from(i), 0.01 * f64::from(i % 5))).collect();
    let page = page_of(&costly.iter().map(|g| &g[..]).collect::<Vec<_>>());
    for part in [
        "Least squares over 80 actions give r = 0.4",
        "above 0, as where a flawed action costs return",
        "(42 actions in 21 groups)",
        "the likely ones have the higher one",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let figure = &unpacked(&page, "data")["flawed"][0];
    assert_eq!((&figure["x"], &figure["y"]), (&"probability q".into(), &"q × advantage (return)".into()));
    let counts = figure["lines"][1]["labels"].as_array().unwrap().iter().filter_map(|label| label.as_str());
    assert_eq!(counts.map(|count| count.parse::<u64>().unwrap()).sum::<u64>(), 80);
    // The other way round: what is likely is punished, and what is flawed pays.
    let paid: Vec<_> = costly.iter().map(|g| g.map(|(q, a)| (q, -a))).collect();
    let page = page_of(&paid.iter().map(|g| &g[..]).collect::<Vec<_>>());
    for part in ["below 0: episodes with flawed actions returned more", "the likely ones have the lower one"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // Noise.
    let page = page_of(&[&[(0.3, 0.5), (0.8, -0.4)], &[(0.3, -0.5), (0.8, 0.4)], &[(0.4, 0.1)], &[(0.6, -0.1)]]);
    for part in ["its interval holds 0, so that these data do not show the curve", "no difference is shown"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // One group.
    assert!(page_of(&[&[(0.3, -0.5)]]).contains("one group cannot tell that from chance"));
    // Nothing is claimed of zeros, of what is certain, or of nothing.
    let page = page_of(&[&[(0.3, 0.0), (0.9, 0.0)], &[(0.95, 0.0)]]);
    assert!(page.contains("The 3 flawed actions have a mean advantage of 0 in every row"), "{page}");
    assert!(unpacked(&page, "data")["flawed"].as_array().unwrap().is_empty() && !page.contains("Least squares"));
    let page = page_of(&[&[(1.0, -0.5)]]);
    assert!(page.contains("are certain or never sampled"), "{page}");
    assert!(!page_of(&[]).contains("<h2>Flawed actions"));
}

#[test]
fn a_report_of_an_empty_run_still_renders() {
    let page = page_with(&Summary::default(), &[], None);
    assert!(page.contains("<h1>a</h1>") && page.contains("nothing yet to set against the cold start"));
    assert!(!page.contains("<h2>Curves"));
}
