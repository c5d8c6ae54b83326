//! The binary as users meet it: flags, messages, exit codes.

use crate::common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn uncouple(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_uncouple")).args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line an error is.
fn refused(args: &[&str]) -> String {
    let output = uncouple(args);
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
    assert!(output.stdout.is_empty(), "results only on stdout");
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{args:?}: one line: {text}");
    text
}

/// The folder of a finished run.
fn train(config: &uncouple::config::Config) -> PathBuf {
    let suite = uncouple::train::suite(config).unwrap();
    uncouple::train::train(config.clone(), &*suite, uncouple::train::run_folder::Existing::Refuse).unwrap().folder
}

#[test]
fn bad_configurations_are_refused_in_one_line() {
    let error = refused(&["train", "--set", "rollout.grup_size=4"]);
    assert!(error.contains("unknown key `rollout.grup_size`: did you mean `rollout.group_size`?"), "{error}");
    assert!(refused(&["train", "--set", "rollout.group_size=1"]).contains("every advantage is 0"));
    assert!(refused(&["train", "--config", "no/such.toml"]).contains("no/such.toml"));
    assert!(refused(&["train", "--name", "../up"]).contains("run.name"));
}

#[test]
fn what_a_worker_writes_does_not_act_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |script: &str| {
        let file = dir.path().join("worker.sh");
        std::fs::write(&file, script).unwrap();
        let command = format!("env.worker.command=['sh', '{}']", file.display());
        refused(&["env", "serve", "--port", "0", "--set", "env.suite=worker", "--set", &command])
    };
    let acts = |text: &str| text.trim_end().contains(|c: char| c.is_control() || "\u{202e}\u{200b}".contains(c));
    // Its last words, its name with an error, and a task.
    let words = serve(r#"printf '\033]0;owned\007 \033[2J \342\200\256gone' >&2; exit 3"#);
    assert!(words.contains(r"saying: \u{1b}]0;owned\u{7} \u{1b}[2J \u{202e}gone") && !acts(&words), "{words}");
    let talk = |answer: &str| {
        let name = r#"{"id":1,"protocol":1,"name":"\u001b[31mred\u200b"}"#;
        serve(&format!("read line; printf '%s\\n' '{name}'; read line; printf '%s\\n' '{answer}'; read line"))
    };
    let error = talk(r#"{"id":2,"error":"no \u009b\nfinal: L0 100 %"}"#);
    assert!(error.contains(r"worker \u{1b}[31mred\u{200b}, list_tasks: no \u{9b}\nfinal: L0 100 %"), "{error}");
    assert!(!acts(&error), "{error}");
    let twice = talk(r#"{"id":2,"tasks":[{"id":"a\u001b[2J","split":"train"},{"id":"a\u001b[2J","split":"L0"}]}"#);
    assert!(twice.contains(r"lists the task a\u{1b}[2J twice") && !acts(&twice), "{twice}");
}

#[test]
fn a_device_that_is_not_there_is_refused_with_the_mend() {
    if uncouple::device::cuda::Cuda::open(Some(1 << 20)).is_ok() {
        return eprintln!("SKIPPED: this machine has a GPU");
    }
    for command in [&["train", "--device", "cuda"][..], &["selftest"]] {
        let error = refused(command);
        assert!(error.contains("--device cuda: ") && error.contains("--device cpu"), "{error}");
    }
}

#[test]
fn a_missing_model_folder_is_named() {
    let error = refused(&["train", "--dry-run", "--model", "no/such/model"]);
    assert!(error.contains("no/such/model"), "{error}");
    assert!(refused(&["eval", "--model", "no/such/model"]).contains("no/such/model"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    assert!(refused(&["eval", "--run", path]).contains("config.toml"));
    std::fs::write(dir.path().join("config.toml"), "").unwrap();
    assert!(refused(&["eval", "--run", path]).contains("no checkpoint"));
}

#[test]
fn an_existing_run_name_is_refused_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    // An empty folder would be a new run.
    std::fs::write(dir.path().join("a/config.toml"), "").unwrap();
    let path = dir.path().to_str().unwrap();
    let error = refused(&["train", "--dir", path, "--name", "a"]);
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");
    assert!(refused(&["train", "--dir", path, "--name", "b", "--resume"]).contains("there is no run"));
    assert!(refused(&["train", "--dir", path, "--resume"]).contains("--name"));
    assert_eq!(uncouple(&["train", "--resume", "--overwrite"]).status.code(), Some(2));
}

#[test]
fn resuming_keeps_the_runs_own_configuration() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("a")).unwrap();
    std::fs::write(dir.path().join("a/config.toml"), "[rollout]\ngroup_size = 4\n[run]\nname = \"a\"\n").unwrap();
    let flags = ["train", "--resume", "--dry-run", "--dir", dir.path().to_str().unwrap(), "--name", "a"];
    let text = stdout(&uncouple(&[&flags[..], &["--set", "run.iterations=99"]].concat()));
    assert!(text.contains("group_size = 4\n") && text.contains("iterations = 99\n"), "{text}");
    let error = refused(&[&flags[..], &["--set", "optim.lr=1"]].concat());
    assert!(error.contains("optim.lr: 0.0002 → 1"), "{error}");
}

#[test]
fn a_dry_run_prints_a_config_file_and_a_memory_plan_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = uncouple(&["train", "--dry-run", "--dir", path, "--set", "grpo.beta=0.1"]);
    assert!(output.status.success());
    let text = stdout(&output);
    let file = dir.path().join("resolved.toml");
    std::fs::write(&file, &text).unwrap();
    let config = uncouple::config::Config::load(Some(&file), &[]).unwrap();
    assert_eq!((config.grpo.beta, &config.run.dir[..]), (0.1, path));
    for part in [
        "weights",
        "gradients",
        "AdamW moments",
        "reference model",
        "packed weights",
        "activations",
        "KV cache",
        "total",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the file of this test");

    let json = |args: &[&str]| -> serde_json::Value {
        let output = uncouple(&[&["train", "--dry-run", "--json", "--dir", path][..], args].concat());
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    let here = json(&[]);
    assert_eq!(here["config"]["rollout"]["group_size"], 8);
    // A GPU's plan needs no GPU.
    let on = |memory| json(&["--device", "cuda", "--memory", memory]);
    assert_eq!(on("80GB")["fit"]["available"], 80_000_000_000u64);
    assert!(on("80GB")["fit"]["advice"].is_null() && on("1MB")["fit"]["advice"].is_string());
    let parts = on("24GiB")["memory"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect::<Vec<_>>();
    assert!(parts.contains(&"master weights".into()) && !parts.contains(&"packed weights".into()), "{parts:?}");
    let wrong = uncouple(&["train", "--dry-run", "--memory", "much"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("80GB"));
    let plan = here["memory"].as_array().unwrap();
    let bytes = |name: &str| plan.iter().find(|p| p["name"] == name).map(|p| p["bytes"].as_u64().unwrap());
    assert_eq!(bytes("AdamW moments"), bytes("weights").map(|w| 2 * w));
    assert_eq!(bytes("reference model"), None, "no reference without a KL term");
    let needed: u64 = plan.iter().map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(here["fit"]["needed"].as_u64(), Some(needed));

    // A plan that no machine has memory for says which key to lower.
    let text = stdout(&uncouple(&[
        "train",
        "--dry-run",
        "--dir",
        path,
        "--set",
        "grpo.micro_tokens=16777216",
        "--set",
        "model.num_hidden_layers=64",
    ]));
    assert!(text.contains("does not fit") && text.contains("lower grpo.micro_tokens"), "{text}");
}

#[test]
fn recomputation_needs_less_memory() {
    let activations = |set: &str| {
        let deep = "model.num_hidden_layers=8";
        let output = stdout(&uncouple(&["train", "--dry-run", "--json", "--set", deep, "--set", set]));
        let json: serde_json::Value = serde_json::from_str(&output).unwrap();
        let plan = json["memory"].as_array().unwrap();
        plan.iter().find(|p| p["name"] == "activations").unwrap()["bytes"].as_u64().unwrap()
    };
    assert!(2 * activations("model.recompute=true") < activations("model.recompute=false"));
}

#[test]
fn doctor_reports_every_part() {
    let output = uncouple(&["doctor", "--json", "--dir", "no/such/folder/yet"]);
    let checks: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = checks.as_array().unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["version", "processor", "simd", "memory", "disk", "gpu", "cublaslt", "kernels", "gemm", "bf16"]);
    let problem = checks.iter().any(|c| c["status"] == "problem");
    assert_eq!(output.status.code(), Some(i32::from(problem)));
    assert!(checks.iter().all(|c| c["status"] == "ok" || c["mend"].is_string()), "what is not ok has a mend");
    assert!(!Path::new("no").exists(), "doctor writes nothing");
    let text = stdout(&uncouple(&["doctor"]));
    assert!(text.contains("GFLOP/s") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [&["train", "--nonsense"][..], &["eval"], &["eval", "--run", "a", "--model", "b"], &["bench", "x"], &[]]
    {
        assert_eq!(uncouple(args).status.code(), Some(2), "{args:?}");
    }
    assert!(stdout(&uncouple(&["--version"])).starts_with("uncouple "));
}

/// Of a finished run, and of one that is not.
fn reports_and_comparisons(run: &std::path::Path) {
    let (name, page) = (run.to_str().unwrap(), run.join("report.html"));
    let written = std::fs::read_to_string(&page).unwrap();
    std::fs::remove_file(&page).unwrap();
    assert_eq!(stdout(&uncouple(&["report", name])).trim(), page.to_str().unwrap());
    assert!(std::fs::read_to_string(&page).unwrap() == written, "the same as training wrote");

    let table = stdout(&uncouple(&["compare", name, name]));
    for part in ["less the first", "L0", "mean final %", "Newcombe"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(table.lines().filter(|l| l.starts_with('│')).all(|l| l.chars().count() <= 80), "{table}");
    let json: serde_json::Value = serde_json::from_str(&stdout(&uncouple(&["compare", "--json", name, name]))).unwrap();
    assert_eq!(json["runs"][1]["difference"][0], 0.0);
    let both = run.join("both.html");
    let output = uncouple(&["report", name, name, "--out", both.to_str().unwrap()]);
    assert!(output.status.success() && std::fs::read_to_string(&both).unwrap().contains("comparison of runs"));

    let summary = std::fs::read(run.join("summary.json")).unwrap();
    std::fs::remove_file(run.join("summary.json")).unwrap();
    assert!(uncouple(&["report", name]).status.success());
    let early = std::fs::read_to_string(&page).unwrap();
    assert!(early.contains("not finished: 2 of 2 GRPO iterations") && early.contains("Where this run comes from"));
    // The summary of an earlier end, which the run has left behind.
    let mut old: serde_json::Value = serde_json::from_slice(&summary).unwrap();
    old["train_steps"] = 1.into();
    std::fs::write(run.join("summary.json"), old.to_string()).unwrap();
    assert!(uncouple(&["report", name]).status.success());
    assert!(std::fs::read_to_string(&page).unwrap().contains("not finished: 2 of 2"));
    std::fs::write(run.join("summary.json"), summary).unwrap();
    let nothing = uncouple(&["report", "no-such-run"]);
    let told = String::from_utf8_lossy(&nothing.stderr).into_owned();
    assert!(!nothing.status.success() && told.contains("no-such-run is not the folder of a run"), "{told}");
    assert!(!uncouple(&["compare", name]).status.success(), "one run is no comparison");
}

#[test]
fn a_small_run_trains_prints_its_results_and_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = (dir.path().to_str().unwrap(), dir.path().join("tiny.toml"));
    std::fs::write(&config, common::runs::TINY).unwrap();
    let output = uncouple(&["train", "--config", config.to_str().unwrap(), "--dir", path, "--name", "a"]);
    let logged = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{logged}");
    assert!(
        logged.contains("cold start 40/40") && logged.contains("grpo 2/2") && logged.contains("final: L0"),
        "{logged}"
    );
    for part in ["evaluation, final: playing 6 games", "sampling at most 48 states 10 times", "(games "] {
        assert!(logged.contains(part), "{part}: {logged}");
    }
    let text = stdout(&output);
    for part in ["cold start", "final", "L0", "L1", "L2", "report.html"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let summary = std::fs::read_to_string(dir.path().join("a/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    for part in ["sft/train", "grpo/rollout", "grpo/train", "eval/games", "eval/consistency", "final/baselines"] {
        assert!(summary["phase_seconds"][part].as_f64().is_some_and(|s| s > 0.0), "{part}: {summary}");
    }

    reports_and_comparisons(&dir.path().join("a"));
    let run = dir.path().join("a");
    let (run, model) = (run.to_str().unwrap(), run.join("checkpoints/step-42"));
    let model = model.to_str().unwrap();
    let json = |flags: &[&str]| {
        let output = uncouple(&[&["eval", "--json"], flags].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str::<serde_json::Value>(&stdout(&output)).unwrap()
    };
    let four = ["--split", "L1", "--games", "4"];
    let of_run = json(&[&["--run", run], &four[..]].concat());
    let results = of_run["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["split"], &results[0]["games"]), (1, &"L1".into(), &4.into()));
    assert_eq!(of_run["limits"]["max_steps"], 3, "the run's own limits");
    let baselines = &of_run["baselines"]["L1"];
    assert!(baselines["games"] == 4 && baselines["oracle"].is_number() && baselines["random"].is_number(), "{of_run}");
    let of_model = json(&[&["--model", model], &four[..]].concat());
    let same = |json: &serde_json::Value| {
        let mut json = json.clone();
        for key in ["seconds", "folder"] {
            json.as_object_mut().unwrap().remove(key).unwrap();
        }
        json
    };
    assert_eq!(same(&of_run), same(&of_model), "a checkpoint is read in its run's own words");
    let of_l1 = &of_run["unreadable"]["L1"];
    let reasons = of_l1["reasons"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(of_l1["rate"]["value"].as_f64().unwrap() * of_l1["turns"].as_f64().unwrap(), reasons as f64, "{of_run}");
    let types = of_run["types"].as_array().unwrap();
    assert_eq!(types.iter().map(|t| t["games"].as_u64().unwrap()).sum::<u64>(), 4, "{of_run}");
    assert!(of_run["seconds"]["games"].is_number());
    // Both are kept beside the run, each in a folder of its own.
    for json in [&of_run, &of_model] {
        let folder = Path::new(json["folder"].as_str().unwrap());
        assert!(folder.parent() == Some(&Path::new(run).canonicalize().unwrap().join("evaluations")), "{folder:?}");
        let db = rusqlite::Connection::open(folder.join("trajectories.sqlite")).unwrap();
        let count = |table: &str| -> i64 {
            db.query_row(&format!("select count(*) from {table}"), [], |row| row.get(0)).unwrap()
        };
        assert_eq!((count("episodes"), count("turns") as u64), (4, of_l1["turns"].as_u64().unwrap()));
        assert_eq!(
            &serde_json::from_slice::<serde_json::Value>(&std::fs::read(folder.join("eval.json")).unwrap()).unwrap(),
            json
        );
    }
    assert!(of_run["folder"] != of_model["folder"]);
    let out = dir.path().join("kept");
    let kept = [&["--run", run, "--out", out.to_str().unwrap()], &four[..]].concat();
    assert_eq!(json(&kept)["folder"], out.to_str().unwrap());
    assert!(refused(&[&["eval"], &kept[..]].concat()).contains("exists already: choose another folder"));
    assert_eq!(json(&["--run", run])["results"].as_array().unwrap().len(), 3, "all splits, the configuration's panel");

    let table = stdout(&uncouple(&[&["eval", "--run", run], &four[..]].concat()));
    for part in [
        "L1",
        "success %",
        "random policy %",
        "demonstrator %",
        "oracle %",
        "at most 3 steps",
        "unreadable turns %",
        "task type",
        "trajectories and results: ",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(!table.contains("L0") && !table.contains('\u{1b}'), "{table}");

    // A model directory that belongs to no run is spoken to through its chat template.
    let alone = dir.path().join("model");
    std::fs::create_dir(&alone).unwrap();
    for file in std::fs::read_dir(model).unwrap().map(|f| f.unwrap().path()) {
        std::fs::copy(&file, alone.join(file.file_name().unwrap())).unwrap();
    }
    let runs = format!("run.dir={}", dir.path().join("runs").display());
    let alone = json(&[&["--model", alone.to_str().unwrap(), "--set", &runs], &four[..]].concat());
    assert!(alone["folder"].as_str().unwrap().contains("/runs/eval-household-"), "{alone}");
    assert_eq!((&alone["results"][0]["games"], &alone["limits"]["max_steps"]), (&4.into(), &20.into()));
}

#[test]
fn a_text_is_continued() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/models/tiny-tied");
    let written = |more: &[&str]| {
        let out = uncouple(&[&["generate", "--model", model, "--prompt", "go north and"], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        stdout(&out)
    };
    let greedy = written(&["--max-tokens", "8"]);
    assert_eq!(greedy, written(&["--max-tokens", "8", "--seed", "5"]), "greedy needs no seed");
    let drawn = |seed: &str| written(&["--max-tokens", "16", "--temperature", "1", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(greedy, written(&["--max-tokens", "8", "--chat"]));
    let refusal =
        |prompt: &str, more: &[&str]| refused(&[&["generate", "--model", model, "--prompt", prompt], more].concat());
    assert!(refusal("", &[]).contains("--prompt is empty"));
    assert!(refusal("a", &["--temperature", "-1"]).contains("--temperature -1: must be a number, 0 or above"));
    let long = refusal(&"go north ".repeat(9_000), &[]);
    assert!(long.contains("no room in the model's context"), "{long}");
    assert!(refused(&["generate", "--model", "no/model", "--prompt", "a"]).contains("no/model"));
}

#[test]
fn a_game_is_played_beside_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("runs")).unwrap();
    train(&common::runs::tiny(&dir.path().join("runs"), "a", &["gcd.mode=generate", "gcd.cold_start=1"]));
    // By its name in runs/.
    let play = |input: &str, more: &[&str]| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_uncouple"))
            .current_dir(dir.path())
            .args(["play", "--run", "a"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        (out.status.success(), stdout(&out), String::from_utf8(out.stderr).unwrap())
    };
    let (fine, told, errors) = play("\nlook\n\n", &[]);
    assert!(fine, "{errors}");
    assert!(told.starts_with("L0 game 0: ") && told.contains("\n[1] agent: ") && told.contains("(q "), "{told}");
    assert!(told.contains("\n> look\n") && told.contains("[3] agent: "), "{told}");
    assert!(told.trim_end().ends_with("over: env.max_steps = 3 turns"), "{told}");
    assert_eq!(told, play("\nlook\n\n", &[]).1, "it does the same again");
    let (fine, told, _) = play("", &["--split", "train", "--index", "7"]);
    assert!(fine && told.starts_with("train game 7: ") && told.trim_end().ends_with("left"), "{told}");
    let (fine, _, errors) = play("", &["--index", "999999999"]);
    assert!(!fine && errors.contains("--index 999999999"), "{errors}");
    let nobody = uncouple(&["play"]);
    assert_eq!(nobody.status.code(), Some(2), "clap's own refusal");
    assert!(String::from_utf8(nobody.stderr).unwrap().contains("<--run <RUN>|--model <DIR>>"));
}

#[test]
fn nobody_reading_the_output_does_not_stop_training() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("tiny.toml");
    std::fs::write(&config, common::runs::TINY).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_uncouple"))
        .args(["train", "--name", "a", "--dir"])
        .args([dir.path().as_os_str(), "--config".as_ref(), config.as_os_str()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(dir.path().join("a/summary.json").exists());
}

#[test]
fn a_given_model_brings_defaults_of_its_size_under_what_is_written() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/golden/models/tiny-tied");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "[sft]\nsteps = 7\n").unwrap();
    let resolved = |more: &[&str]| -> serde_json::Value {
        let args = ["train", "--dry-run", "--json", "--model", model, "--config", file.to_str().unwrap()];
        serde_json::from_str(&stdout(&uncouple(&[&args, more].concat()))).unwrap()
    };
    let config = &resolved(&[])["config"];
    assert_eq!((&config["prompt"]["format"], &config["sft"]["steps"]), (&"chat".into(), &7.into()));
    assert_eq!(config["sft"]["lr"].as_f64().unwrap() as f32, 1e-4, "the rate of the smallest models");
    assert_eq!(config["rollout"]["max_turn_tokens"], 48);
    let config = &resolved(&["--set", "prompt.format=think", "--set", "sft.lr=0.5"])["config"];
    assert_eq!((&config["prompt"]["format"], &config["rollout"]["max_turn_tokens"]), (&"think".into(), &256.into()));
    assert_eq!(config["sft"]["lr"], 0.5);
}
