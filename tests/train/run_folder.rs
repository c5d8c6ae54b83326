//! The run folder: names, locks, atomic writes, checkpoints, and disks that are full.

use std::fs;
use std::path::Path;
use uncouple::config::Config;
use uncouple::files::{self, FileError};
use uncouple::train::TrainError;
use uncouple::train::run_folder::{Existing, RunFolder, RunFolderError};

fn config(dir: &Path, name: &str) -> Config {
    let mut config = Config::default();
    config.run.dir = dir.display().to_string();
    config.run.name = name.into();
    config
}

fn open(dir: &Path, name: &str, existing: Existing) -> Result<RunFolder, RunFolderError> {
    RunFolder::open(&mut config(dir, name), existing)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_new_run_holds_its_resolved_config() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("deep/runs"), "");
    let run = RunFolder::open(&mut config, Existing::Refuse).unwrap();
    assert!(config.run.name.starts_with("household-20"), "{}", config.run.name);
    assert_eq!((run.name(), run.resumed()), (config.run.name.clone(), false));
    let saved = RunFolder::saved_config(&config.run.dir, &config.run.name);
    assert_eq!(Config::load(Some(&saved), &[]).unwrap(), config);

    // A second nameless run in the same minute gets a name of its own.
    let first = config.run.name.clone();
    config.run.name.clear();
    let _second = RunFolder::open(&mut config, Existing::Refuse).unwrap();
    assert_ne!(config.run.name, first);
}

#[test]
fn a_name_is_reused_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), "a", Existing::Refuse).unwrap());
    let error = open(dir.path(), "a", Existing::Refuse).unwrap_err().to_string();
    assert!(error.contains("--resume") && error.contains("--overwrite"), "{error}");

    let run = open(dir.path(), "a", Existing::Resume).unwrap();
    assert!(run.resumed());
    run.write("metrics.jsonl", b"{}\n").unwrap();
    run.write_checkpoint::<FileError>(1, 2, |_| Ok(())).unwrap();
    drop(run);

    let run = open(dir.path(), "a", Existing::Overwrite).unwrap();
    assert!(!run.resumed());
    assert_eq!(names(run.path()), [".lock", "config.toml"]);

    assert!(matches!(open(dir.path(), "b", Existing::Resume), Err(RunFolderError::Missing(_))));
    assert!(matches!(open(dir.path(), "", Existing::Resume), Err(RunFolderError::Nameless)));
    open(dir.path(), "c", Existing::Overwrite).unwrap();
}

#[test]
fn overwrite_never_deletes_what_is_not_a_run() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("photos")).unwrap();
    fs::write(dir.path().join("photos/cat.png"), "cat").unwrap();
    assert!(matches!(open(dir.path(), "photos", Existing::Overwrite), Err(RunFolderError::NotARun(_))));
    assert!(dir.path().join("photos/cat.png").exists());
}

#[test]
fn a_folder_in_which_no_run_has_begun_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    // What a process leaves that is killed after its first, second, third operation.
    for files in [&[][..], &[".lock"], &[".lock", ".config.toml.unfinished"]] {
        for existing in [Existing::Refuse, Existing::Overwrite] {
            fs::create_dir(&path).unwrap();
            files.iter().for_each(|name| fs::write(path.join(name), "").unwrap());
            assert!(matches!(open(dir.path(), "a", Existing::Resume), Err(RunFolderError::Missing(_))));
            let run = open(dir.path(), "a", existing).unwrap();
            assert!(!run.resumed());
            assert_eq!(names(run.path()), [".lock", "config.toml"]);
            fs::remove_dir_all(&path).unwrap();
        }
    }
    fs::create_dir(&path).unwrap();
    for name in [".lock", ".mine", "notes.txt"] {
        fs::write(path.join(name), "").unwrap();
    }
    assert!(matches!(open(dir.path(), "a", Existing::Refuse), Err(RunFolderError::Exists(_))));
    assert!(matches!(open(dir.path(), "a", Existing::Overwrite), Err(RunFolderError::NotARun(_))));
    assert_eq!(names(&path), [".lock", ".mine", "notes.txt"]);
}

#[test]
fn what_a_killed_process_left_is_swept_by_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    write(&run, 7, "seven");
    let path = run.path().to_path_buf();
    let left =
        [".reference.removed", "checkpoints/.step-8.unfinished", "checkpoints/.step-6.removed"].map(|n| path.join(n));
    let files = [".report.html.unfinished", "checkpoints/.x.removed"].map(|n| path.join(n));
    left.iter().for_each(|folder| {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
    });
    files.iter().for_each(|file| fs::write(file, "").unwrap());
    fs::write(path.join(".mine"), "").unwrap();
    std::os::unix::fs::symlink("/dev/full", path.join(".link.unfinished")).unwrap();
    // The first process still writes here.
    assert!(matches!(open(dir.path(), "a", Existing::Resume), Err(RunFolderError::Locked(_))));
    assert!(left.iter().chain(&files).all(|path| path.exists()));
    drop(run);
    let run = open(dir.path(), "a", Existing::Resume).unwrap();
    assert_eq!(names(run.path()), [".link.unfinished", ".lock", ".mine", "checkpoints", "config.toml"]);
    assert_eq!(names(&run.path().join("checkpoints")), ["step-7"]);
    assert_eq!(last(&run).unwrap().as_deref(), Some("seven"));
}

/// Between two renames, where names cannot be exchanged: the checkpoint that was to be replaced has no name of its own.
#[test]
fn a_checkpoint_on_its_way_out_comes_back_where_none_took_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    let parent = run.path().join("checkpoints");
    for step in [1, 2, 3] {
        write(&run, step, &step.to_string());
    }
    drop(run);
    let hide = |step: u64| {
        fs::rename(parent.join(format!("step-{step}")), parent.join(format!(".step-{step}.removed"))).unwrap()
    };
    let reopened = || open(dir.path(), "a", Existing::Resume).unwrap();
    // Nothing else is left, or an older one: it comes back.
    hide(3);
    assert_eq!(last(&reopened()).unwrap().as_deref(), Some("3"));
    assert_eq!(names(&parent), ["step-1", "step-2", "step-3"]);
    [1, 2, 3].into_iter().for_each(hide);
    assert_eq!(last(&reopened()).unwrap().as_deref(), Some("3"));
    assert_eq!(names(&parent), ["step-3"]);
    // A later one stands: it was being deleted.
    let run = reopened();
    write(&run, 4, "4");
    drop(run);
    hide(3);
    assert_eq!(last(&reopened()).unwrap().as_deref(), Some("4"));
    assert_eq!(names(&parent), ["step-4"]);
}

#[test]
fn a_step_written_again_replaces_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    write(&run, 1, "one");
    write(&run, 1, "again");
    assert_eq!(names(&run.path().join("checkpoints")), ["step-1"]);
    assert_eq!(last(&run).unwrap().as_deref(), Some("again"));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken() {
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 8] = [
        ("model has 4 bytes, but manifest.json says 9", |step| fs::write(step.join("model"), "some").unwrap()),
        ("model was edited, or belongs to another step", |step| fs::write(step.join("model"), "weights-1").unwrap()),
        ("model is missing", |step| fs::remove_file(step.join("model")).unwrap()),
        ("state.json was edited", |step| fs::write(step.join("state.json"), r#"{"step":9,"seconds":1.5}"#).unwrap()),
        ("state.json was edited", |step| fs::write(step.join("state.json"), "{").unwrap()),
        ("manifest.json is not readable", |step| fs::write(step.join("manifest.json"), "").unwrap()),
        ("manifest.json is that of step 1", |step| {
            fs::copy(step.with_file_name("step-1/manifest.json"), step.join("manifest.json")).unwrap();
        }),
        // Of an earlier version, and incomplete.
        ("cannot read", |step| ["model", "manifest.json"].iter().for_each(|f| fs::remove_file(step.join(f)).unwrap())),
    ];
    for (says, spoil) in cases {
        let dir = tempfile::tempdir().unwrap();
        let run = open(dir.path(), "a", Existing::Refuse).unwrap();
        write(&run, 1, "weights-1");
        write(&run, 2, "weights-2");
        let parent = run.path().join("checkpoints");
        spoil(&parent.join("step-2"));
        assert_eq!(last(&run).unwrap().as_deref(), Some("weights-1"), "{says}");
        assert_eq!(names(&parent), ["damaged-step-2", "step-1"], "{says}");
        // None is left: that is told, and nothing is lost.
        write(&run, 2, "weights-2");
        spoil(&parent.join("step-2"));
        fs::write(parent.join("step-1/model"), "nonsense!").unwrap();
        let error = last(&run).unwrap_err().to_string();
        assert!(
            error.contains(says) && error.contains("step-2") && error.contains("step-1: model was edited"),
            "{error}"
        );
        assert!(error.contains("--overwrite") && error.lines().count() == 1, "{error}");
        assert_eq!(names(&parent), ["damaged-step-2", "step-1", "step-2"]);
    }
}

#[test]
fn a_checkpoint_may_have_company_another_wall_time_or_no_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    write(&run, 1, "one");
    let step = run.path().join("checkpoints/step-1");
    fs::write(step.join("notes.txt"), "mine").unwrap();
    fs::write(step.join("state.json"), r#"{"step":1,"seconds":99.25}"#).unwrap();
    assert_eq!(last(&run).unwrap().as_deref(), Some("one"));
    fs::remove_file(step.join("manifest.json")).unwrap();
    assert_eq!(last(&run).unwrap().as_deref(), Some("one"));
    assert_eq!(names(&run.path().join("checkpoints")), ["step-1"]);
}

/// A checkpoint that holds `text`.
fn write(run: &RunFolder, step: u64, text: &str) {
    let fill = |tmp: &Path| {
        fs::write(tmp.join("model"), text).map_err(|e| FileError::new("write", tmp, e))?;
        let state = format!(r#"{{"step":{step},"seconds":0.5}}"#);
        fs::write(tmp.join("state.json"), state).map_err(|e| FileError::new("write", tmp, e))
    };
    run.write_checkpoint(step, 9, fill).unwrap();
}

/// What the last whole checkpoint holds.
fn last(run: &RunFolder) -> Result<Option<String>, TrainError> {
    run.load_checkpoint(|dir| {
        let file = dir.join("model");
        Ok(fs::read_to_string(&file).map_err(|e| FileError::new("read", file, e))?)
    })
}

#[test]
fn two_processes_cannot_train_in_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), "a", Existing::Refuse).unwrap();
    for existing in [Existing::Resume, Existing::Overwrite] {
        assert!(matches!(open(dir.path(), "a", existing), Err(RunFolderError::Locked(_))));
    }
    drop(first);
    open(dir.path(), "a", Existing::Resume).unwrap();
}

#[test]
fn only_the_latest_checkpoints_stay() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    assert!(run.checkpoints().unwrap().is_empty());
    for step in [8, 9, 10, 11] {
        let path = run.write_checkpoint(step, 2, |tmp| {
            fs::write(tmp.join("model"), step.to_string()).map_err(|e| FileError::new("write", tmp, e))
        });
        assert_eq!(fs::read_to_string(path.unwrap().join("model")).unwrap(), step.to_string());
    }
    let steps: Vec<u64> = run.checkpoints().unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [10, 11]);
    assert_eq!(names(&run.path().join("checkpoints")), ["step-10", "step-11"]);
}

#[test]
fn a_checkpoint_that_fails_leaves_the_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    let write = |text: &'static str| {
        move |tmp: &Path| fs::write(tmp.join("model"), text).map_err(|e| FileError::new("write", tmp, e))
    };
    run.write_checkpoint(1, 1, write("one")).unwrap();
    // Both a new step and the same step again fail midway, with the disk full.
    for step in [1, 2] {
        let error = run.write_checkpoint(step, 1, |tmp| {
            write("half")(tmp)?;
            Err(FileError::new("write", tmp.join("model"), std::io::ErrorKind::StorageFull.into()))
        });
        let error = error.unwrap_err();
        assert!(error.is_disk_full());
        assert!(error.to_string().contains("the disk is full") && error.to_string().contains("--resume"), "{error}");
    }
    assert_eq!(names(&run.path().join("checkpoints")), ["step-1"]);
    assert_eq!(fs::read_to_string(run.path().join("checkpoints/step-1/model")).unwrap(), "one");
    // An unfinished checkpoint of a killed process is neither listed nor in the way.
    fs::create_dir(run.path().join("checkpoints/.step-2.unfinished")).unwrap();
    assert_eq!(run.checkpoints().unwrap().len(), 1);
    run.write_checkpoint(2, 1, write("two")).unwrap();
    assert_eq!(names(&run.path().join("checkpoints")), ["step-2"]);
}

#[test]
fn a_full_disk_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path(), "a", Existing::Refuse).unwrap();
    run.write("summary.json", b"old").unwrap();
    // The temporary file of summary.json now lies on a device that is always full.
    std::os::unix::fs::symlink("/dev/full", run.path().join(".summary.json.unfinished")).unwrap();
    let error = run.write("summary.json", b"new").unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(error.to_string().contains("summary.json") && error.to_string().contains("--resume"), "{error}");
    assert_eq!(fs::read(run.path().join("summary.json")).unwrap(), b"old");
    run.write("summary.json", b"new").unwrap();
    assert_eq!(fs::read(run.path().join("summary.json")).unwrap(), b"new");
}

#[test]
fn errors_of_the_writer_and_of_the_folder_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let error = files::write_file(&path, |_| Err(std::io::Error::other("nonsense"))).unwrap_err().to_string();
    assert!(error.contains("x: nonsense"), "{error}");
    assert!(names(dir.path()).is_empty());
    let error = files::write_file(&dir.path().join("gone/x"), |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("gone/x"), "{error}");
}
