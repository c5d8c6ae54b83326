//! Compiles every kernels/*.cu with nvcc to one fat binary (sm_80, sm_90a, PTX; of `*_hopper.cu` sm_90a alone) and writes the table
//! that `src/device/kernels.rs` includes. A machine without nvcc builds a program without kernels, with one warning.
//!
//! `UNCOUPLE_CUDA`: `require` makes a missing nvcc an error, `off` skips the kernels quietly. `UNCOUPLE_NVCC` names the compiler.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io, thread};

/// The PyPI packages that make a working nvcc; all of one release, which pip would not see to.
const WHEELS: [&str; 5] =
    ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl", "nvidia-cuda-runtime"];
const RELEASE: &str = "13.0.*";

/// Every warning is an error; ptxas reports registers and spills.
const FLAGS: [&str; 7] = ["-fatbin", "-std=c++17", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings"];
const HOPPER: [&str; 2] = ["-gencode", "arch=compute_90a,code=sm_90a"];
/// SASS for A100, and PTX for what comes after Hopper.
const OTHERS: [&str; 4] = ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_80,code=compute_80"];

/// Variables that decide what is built.
const VARIABLES: [&str; 7] =
    ["UNCOUPLE_CUDA", "UNCOUPLE_NVCC", "NVCC", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "UNCOUPLE_COMMIT"];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            problem.lines().for_each(|line| println!("cargo::error={line}"));
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    VARIABLES.iter().for_each(|v| println!("cargo::rerun-if-env-changed={v}"));
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    name_commit(&root);
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let table = out.join("kernels.rs");

    let wish = env::var("UNCOUPLE_CUDA").unwrap_or_default();
    let nvcc = match wish.as_str() {
        "off" => None,
        "" | "require" => find_nvcc(&root, |name| env::var_os(name)),
        other => return Err(format!("UNCOUPLE_CUDA is \"{other}\": it may be \"require\", \"off\" or absent")),
    };
    if let Some(named) = env::var_os("UNCOUPLE_NVCC").map(PathBuf::from)
        && wish != "off"
        && nvcc.as_ref() != Some(&named)
    {
        return Err(format!("UNCOUPLE_NVCC is \"{}\", which is no file: correct it, or unset it", named.display()));
    }
    let Some(nvcc) = nvcc else {
        match wish.as_str() {
            "require" => return Err(format!("UNCOUPLE_CUDA=require, but there is no nvcc. {}", advice())),
            "" => println!("cargo::warning=no nvcc: this build trains on the CPU only. {}", advice()),
            _ => {}
        }
        return write_if_new(&table, &table_text(&[])).map_err(|e| format!("{}: {e}", table.display()));
    };

    let folder = root.join("kernels");
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let mut sources: Vec<PathBuf> = fs::read_dir(&folder)
        .and_then(|entries| entries.map(|e| Ok(e?.path())).collect::<io::Result<_>>())
        .map_err(|e| format!("{}: {e}", folder.display()))?;
    sources.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    // Not the folder, in which the emulator and the driver are too. A new kernel is launched by its op, which changes with it. Which of
    // them need compiling, their depfiles say.
    let others = [folder.join("common"), root.join("src/ops")];
    sources.iter().chain(&others).for_each(|file| println!("cargo::rerun-if-changed={}", file.display()));

    let modules = compile_all(&nvcc, &folder, &sources, &out)?;
    write_if_new(&table, &table_text(&modules)).map_err(|e| format!("{}: {e}", table.display()))
}

/// Tells the program which commit it is built from: `UNCOUPLE_COMMIT`, or what git says, with `+` where sources differ from it. Says
/// nothing where there is no git, or where the folder is not the root of a repository.
fn name_commit(root: &Path) {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    if env::var("UNCOUPLE_COMMIT").is_ok_and(|commit| !commit.is_empty()) {
        return;
    }
    let top = git(&["rev-parse", "--show-toplevel"]).and_then(|top| fs::canonicalize(top).ok());
    let (Some(commit), true) = (git(&["rev-parse", "HEAD"]), top.is_some() && top == fs::canonicalize(root).ok())
    else {
        return;
    };
    let sources = ["src", "kernels", "build.rs", "Cargo.toml", "Cargo.lock"];
    let changed =
        git(&[&["status", "--porcelain", "--"][..], &sources].concat()).is_some_and(|files| !files.is_empty());
    println!("cargo::rustc-env=UNCOUPLE_COMMIT={commit}{}", if changed { "+" } else { "" });
    // It grows with every commit and checkout.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(|log| root.join(log));
    log.into_iter().filter(|log| log.exists()).for_each(|log| println!("cargo::rerun-if-changed={}", log.display()));
    println!("cargo::rerun-if-changed={}", root.join("src").display());
}

fn advice() -> String {
    let wheels = WHEELS.map(|w| format!("\"{w}=={RELEASE}\"")).join(" ");
    format!(
        "To get one: python3 -m venv .venv && .venv/bin/pip install {wheels}, then build with UNCOUPLE_CUDA=require \
         (UNCOUPLE_CUDA=off builds without and says nothing)"
    )
}

/// The first nvcc of: `UNCOUPLE_NVCC`, `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, the active virtualenv, `.venv` of the project,
/// /usr/local/cuda.
pub fn find_nvcc(root: &Path, var: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let file = |name: &str| var(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut places: Vec<PathBuf> = ["UNCOUPLE_NVCC", "NVCC"].iter().filter_map(|v| file(v)).collect();
    places.extend(["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|v| file(v)).map(|home| home.join("bin/nvcc")));
    places.extend(env::split_paths(&var("PATH").unwrap_or_default()).map(|folder| folder.join("nvcc")));
    for environment in file("VIRTUAL_ENV").into_iter().chain([root.join(".venv")]) {
        // lib/python3.12/site-packages/nvidia/cu13
        let pythons = fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        places.extend(pythons.map(|python| python.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    places.push("/usr/local/cuda/bin/nvcc".into());
    places.into_iter().find(|p| p.is_file())
}

/// What came of one .cu file.
pub struct Module {
    pub name: String,
    pub image: PathBuf,
    /// What ptxas said.
    pub report: PathBuf,
}

fn compile_all(nvcc: &Path, folder: &Path, sources: &[PathBuf], out: &Path) -> Result<Vec<Module>, String> {
    // Cargo's job count: a build that was asked to be gentle is.
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, sources.len().max(1));
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Result<Module, String>)> {
        std::iter::from_fn(|| {
            let i = next.fetch_add(1, Ordering::Relaxed);
            Some((i, compile(nvcc, folder, sources.get(i)?, out)))
        })
        .collect()
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|w| w.join().unwrap_or_default()).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    let (good, bad): (Vec<_>, Vec<_>) = done.into_iter().map(|(_, result)| result).partition(Result::is_ok);
    let problems: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if problems.is_empty() { Ok(good.into_iter().flatten().collect()) } else { Err(problems.join("\n")) }
}

/// Compiles one file, unless neither it nor what it includes nor the command has changed.
fn compile(nvcc: &Path, folder: &Path, source: &Path, out: &Path) -> Result<Module, String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = |extension: &str| out.join(format!("{name}.{extension}"));
    let (image, report, depfile, stamp) = (file("fatbin"), file("ptxas.txt"), file("d"), file("stamp"));

    let mut command = Command::new(nvcc);
    command.args(FLAGS).args(HOPPER);
    if !name.ends_with("_hopper") {
        command.args(OTHERS);
    }
    command.arg("-I").arg(folder).arg("-MD").arg("-MF").arg(&depfile).arg("-o").arg(&image).arg(source);
    let up_to_date = image.exists()
        && report.exists()
        && fs::read_to_string(&stamp).is_ok_and(|old| Some(old) == fingerprint(&command, &depfile));
    if !up_to_date {
        let output = command.output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            let printed = String::from_utf8_lossy(&output.stdout);
            return Err(format!("nvcc does not compile {}:\n{printed}{said}", source.display()));
        }
        let write = |path: &Path, text: &str| fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()));
        write(&report, &said)?;
        write(&stamp, &fingerprint(&command, &depfile).unwrap_or_default())?;
    }
    Ok(Module { name, image, report })
}

/// Of the command and the contents of all it read; `None` when something of that is gone.
fn fingerprint(command: &Command, depfile: &Path) -> Option<String> {
    let mut hasher = DefaultHasher::new();
    format!("{command:?}").hash(&mut hasher);
    for dependency in dependencies(&fs::read_to_string(depfile).ok()?) {
        fs::read(dependency).ok()?.hash(&mut hasher);
    }
    Some(format!("{:016x}", hasher.finish()))
}

/// The files that a depfile (`target : a \` and so on, spaces escaped) names.
pub fn dependencies(depfile: &str) -> Vec<String> {
    let Some((_, list)) = depfile.split_once(" : ").or_else(|| depfile.split_once(": ")) else { return Vec::new() };
    let list = list.replace("\\\n", " ").replace("\\ ", "\0");
    list.split_whitespace().map(|file| file.replace('\0', " ")).collect()
}

/// Rust source: the modules, with their bytes.
fn table_text(modules: &[Module]) -> String {
    let rows: String = modules
        .iter()
        .map(|m| {
            format!(
                "    Module {{ name: {:?}, image: include_bytes!({:?}), report: include_str!({:?}) }},\n",
                m.name, m.image, m.report
            )
        })
        .collect();
    format!("&[\n{rows}]\n")
}

/// Leaves a file alone whose text would not change, so that nothing is rebuilt for it.
fn write_if_new(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).ok().as_deref() == Some(text) { Ok(()) } else { fs::write(path, text) }
}
