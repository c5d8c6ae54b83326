//! The CUDA kernels that this program carries: one fat binary for each kernels/*.cu, made by build.rs, and ptxas' report on it.

/// A compiled .cu file: machine code for sm_80 and sm_90a, and PTX for what comes after; of `*_hopper.cu` for sm_90a alone.
pub struct Module {
    /// The op: `rmsnorm`.
    pub name: &'static str,
    /// For `cuModuleLoadData`.
    pub image: &'static [u8],
    /// What ptxas said of it, on every architecture.
    pub report: &'static str,
}

/// Empty in a build without nvcc.
pub static MODULES: &[Module] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What a kernel takes on one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The kernel's name.
    pub kernel: String,
    /// `sm_90a`.
    pub arch: String,
    /// For each thread.
    pub registers: u32,
    /// Bytes of local memory for each thread: arrays that did not fit registers, and spills.
    pub stack: u32,
    /// Bytes of registers stored to local memory.
    pub spill_stores: u32,
    /// Bytes of registers loaded back from local memory.
    pub spill_loads: u32,
    /// Bytes of static shared memory for each block.
    pub shared: u32,
}

impl Usage {
    /// Whether all that a thread holds stays in registers.
    pub fn in_registers(&self) -> bool {
        self.stack == 0 && self.spill_stores == 0 && self.spill_loads == 0
    }
}

impl Module {
    /// Every kernel on every architecture.
    pub fn usage(&self) -> Vec<Usage> {
        parse_report(self.report)
    }
}

/// The module that has a kernel of this name (`op_variant_dtype`).
pub fn module_of(kernel: &str) -> Option<&'static Module> {
    MODULES.iter().find(|m| m.usage().iter().any(|u| u.kernel == kernel))
}

/// Reads the output of `ptxas -v`.
pub fn parse_report(report: &str) -> Vec<Usage> {
    // "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", "Used 32 registers, used 1 barriers, 256 bytes smem"
    let number = |line: &str, what: &str| -> Option<u32> {
        line.split([',', ':']).find_map(|part| {
            let words: Vec<&str> = part.split_whitespace().collect();
            let (count, rest) = words.split_at(words.iter().position(|w| w.parse::<u32>().is_ok())? + 1);
            (rest.join(" ") == what).then(|| count.last()?.parse().ok())?
        })
    };
    let mut found: Vec<Usage> = Vec::new();
    for line in report.lines() {
        if let Some((_, entry)) = line.split_once("Compiling entry function ") {
            let names: Vec<&str> = entry.split('\'').collect();
            if let [_, kernel, _, arch, ..] = names[..] {
                let (kernel, arch) = (kernel.to_string(), arch.to_string());
                let (registers, stack, spill_stores, spill_loads, shared) = (0, 0, 0, 0, 0);
                found.push(Usage { kernel, arch, registers, stack, spill_stores, spill_loads, shared });
            }
        } else if let Some(usage) = found.last_mut() {
            let set = |field: &mut u32, what| *field = number(line, what).unwrap_or(*field);
            set(&mut usage.registers, "registers");
            set(&mut usage.stack, "bytes stack frame");
            set(&mut usage.spill_stores, "bytes spill stores");
            set(&mut usage.spill_loads, "bytes spill loads");
            set(&mut usage.shared, "bytes smem");
        }
    }
    found
}
