//! The run folder: names, locks, atomic writes, checkpoints, and disks that are full.

use std::fs;
use std::path::Path;
use uncouple::config::Config;
use uncouple::files::{self, FileError};
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
