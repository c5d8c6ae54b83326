//! Compiles the kernels as C++17 with the shim in front, and writes the table of them that `kernel.rs` includes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let kernels = here.join("..");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let shim = here.join("src/shim.h");
    let mut sources = Vec::new();
    for folder in [&kernels, &here.join("tests")] {
        for entry in fs::read_dir(folder)? {
            sources.push(entry?.path());
        }
    }
    sources.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    sources.sort();
    // Not the folder, in which the driver is too: so a file that is new is seen when this is touched (`Fault::UnknownKernel`).
    let others = [kernels.join("common"), shim.clone(), here.join("src/shim.cpp"), here.join("build.rs")];
    sources.iter().chain(&others).for_each(|file| println!("cargo::rerun-if-changed={}", file.display()));

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).include(&kernels);
    // The kernels' sums are to be those of their text; `#pragma unroll` is nvcc's.
    build.flags(["-ffp-contract=off", "-fno-strict-aliasing", "-fno-exceptions", "-Wno-unknown-pragmas", "-Wno-psabi"]);
    if env::var_os("CARGO_FEATURE_COUNTERS").is_some() {
        // A call before every access, of one word of the program's own.
        build.flags(["-fsanitize=thread", "-fno-tree-vectorize", "-fno-tree-slp-vectorize"]);
        let mut counter = cc::Build::new();
        counter.cpp(true).std("c++17").opt_level(2).file(here.join("src/counter.cpp")).compile("counter");
        println!("cargo::rerun-if-changed={}", here.join("src/counter.cpp").display());
    }
    // For tests that compile kernels with mistakes in them, and load them into their own process.
    let compiler = build.get_compiler();
    let words =
        [compiler.path().to_string_lossy()].into_iter().chain(compiler.args().iter().map(|a| a.to_string_lossy()));
    println!("cargo::rustc-env=EMULATOR_COMPILER={}", words.collect::<Vec<_>>().join("\t"));
    println!("cargo::rustc-link-arg-tests=-rdynamic");
    let mut table = String::new();
    for source in &sources {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let names = kernel_names(&fs::read_to_string(source)?);
        let mut unit = format!("#include \"{}\"\n#include \"{}\"\n", shim.display(), source.display());
        let _ = writeln!(unit, "extern \"C\" const emulator::Kernel emulated_{stem}[] = {{");
        for name in &names {
            let _ = writeln!(unit, "    EMULATED({name}),");
        }
        unit += "};\n";
        let _ = writeln!(table, "unsafe extern \"C\" {{ static emulated_{stem}: [Kernel; {}]; }}", names.len());
        build.file(write_if_new(&out.join(format!("{stem}.cpp")), &unit)?);
    }
    table += "/// The kernels of each file.\nfn files() -> Vec<&'static [Kernel]> {\n    unsafe { vec![";
    for source in &sources {
        let _ = write!(table, "&emulated_{}, ", source.file_stem().unwrap_or_default().to_string_lossy());
    }
    table += "] }\n}\n";
    write_if_new(&out.join("kernels.rs"), &table)?;
    build.file(here.join("src/shim.cpp")).compile("emulated");
    Ok(())
}

/// The names of the `extern "C" __global__` functions of a file.
fn kernel_names(source: &str) -> Vec<String> {
    let code: Vec<&str> = source.lines().map(|l| l.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let heads = code.split("__global__").skip(1).map(|rest| rest.split('{').next().unwrap_or_default());
    // `void __launch_bounds__(256) name(…`: the word before the parenthesis that is not an attribute's.
    let name = |head: &str| {
        head.split('(')
            .map(|part| part.rsplit(|c: char| c.is_whitespace() || c == ')').next().unwrap_or_default().to_string())
            .find(|word| !word.is_empty() && word != "__launch_bounds__")
    };
    heads.filter_map(name).collect()
}

fn write_if_new<'a>(path: &'a Path, text: &str) -> io::Result<&'a Path> {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text)?;
    }
    Ok(path)
}
