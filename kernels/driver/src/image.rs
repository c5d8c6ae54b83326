//! A fat binary: the image of it that a GPU takes, and what the machine code says of its kernels.

use crate::status::{INVALID_IMAGE, NO_BINARY_FOR_GPU, Status};
use std::collections::BTreeMap;

/// What stands at the beginning of a fat binary.
const MAGIC: u32 = 0xBA55_ED50;
/// Kinds of images.
const PTX: u16 = 1;
const MACHINE_CODE: u16 = 2;

/// The image chosen for a GPU.
#[derive(Debug)]
pub struct Image {
    /// 90 of sm_90a.
    pub arch: u32,
    /// Of machine code; PTX does not say.
    pub kernels: Option<BTreeMap<String, Usage>>,
}

/// What the machine code of a kernel says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of each.
    pub parameters: Vec<usize>,
    /// For each thread.
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
    /// By its launch bounds.
    pub max_threads: Option<u32>,
}

/// An image that a fat binary holds.
struct Entry<'a> {
    kind: u16,
    arch: u32,
    body: &'a [u8],
}

impl Entry<'_> {
    /// Machine code runs on its major version from its minor on, that of sm_90a on 9.0; PTX on all that is newer.
    fn runs_on(&self, compute_capability: (u32, u32)) -> bool {
        let (major, minor) = (self.arch / 10, self.arch % 10);
        match self.kind {
            MACHINE_CODE => major == compute_capability.0 && minor <= compute_capability.1,
            _ => (major, minor) <= compute_capability,
        }
    }
}

/// The whole of the fat binary that begins here.
///
/// # Safety
/// The header and as many bytes as it announces can be read.
pub unsafe fn whole<'a>(start: *const u8) -> Result<&'a [u8], (Status, String)> {
    if start.is_null() || !start.cast::<u64>().is_aligned() {
        return Err((INVALID_IMAGE, "the image is not aligned to 8 bytes".into()));
    }
    // SAFETY: the caller's word.
    unsafe {
        let header = std::slice::from_raw_parts(start, 16);
        let (Some(MAGIC), Some(head), Some(body)) = (u32_at(header, 0), u16_at(header, 6), u64_at(header, 8)) else {
            return Err((INVALID_IMAGE, "the image is no fat binary".into()));
        };
        Ok(std::slice::from_raw_parts(start, usize::from(head) + body as usize))
    }
}

/// The best image for this GPU: machine code before PTX, the newest of either.
pub fn choose(fat_binary: &[u8], compute_capability: (u32, u32)) -> Result<Image, (Status, String)> {
    let entries = entries(fat_binary).ok_or((INVALID_IMAGE, "the fat binary is cut short".into()))?;
    let fitting = entries.iter().filter(|entry| entry.runs_on(compute_capability));
    let Some(best) = fitting.max_by_key(|entry| (entry.kind, entry.arch)) else {
        let held: Vec<_> = entries.iter().map(|entry| (entry.kind, entry.arch)).collect();
        return Err((NO_BINARY_FOR_GPU, format!("no image for {compute_capability:?} among {held:?}")));
    };
    let kernels = match best.kind {
        MACHINE_CODE => {
            let unreadable = || (INVALID_IMAGE, format!("the machine code for sm_{} cannot be read", best.arch));
            Some(usages(best.body, best.arch).ok_or_else(unreadable)?)
        }
        _ => None,
    };
    Ok(Image { arch: best.arch, kernels })
}

fn entries(fat_binary: &[u8]) -> Option<Vec<Entry<'_>>> {
    let mut at = usize::from(u16_at(fat_binary, 6)?);
    let mut found = Vec::new();
    while at < fat_binary.len() {
        let entry = &fat_binary[at..];
        let (head, size) = (u32_at(entry, 4)? as usize, u64_at(entry, 8)? as usize);
        let (kind, arch, body) = (u16_at(entry, 0)?, u32_at(entry, 28)?, entry.get(head..head.checked_add(size)?)?);
        if kind == PTX || kind == MACHINE_CODE {
            found.push(Entry { kind, arch, body });
        }
        at += head + size;
    }
    Some(found)
}

/// Of every kernel in an ELF file. `None` where it is none, or is cut short.
fn usages(elf: &[u8], arch: u32) -> Option<BTreeMap<String, Usage>> {
    if !elf.starts_with(b"\x7fELF") {
        return None;
    }
    let (table, entry) = (u64_at(elf, 0x28)? as usize, usize::from(u16_at(elf, 0x3A)?));
    let (count, names) = (usize::from(u16_at(elf, 0x3C)?), usize::from(u16_at(elf, 0x3E)?));
    let offset = |section: usize| Some(u64_at(elf, table + section * entry + 24)? as usize);
    let names = offset(names)?;
    let mut found: BTreeMap<String, Usage> = BTreeMap::new();
    for section in 0..count {
        let header = table + section * entry;
        let name = elf.get(names + u32_at(elf, header)? as usize..)?.split(|byte| *byte == 0).next()?;
        let (name, size) = (String::from_utf8_lossy(name), u64_at(elf, header + 32)? as usize);
        if let Some(kernel) = name.strip_prefix(".text.") {
            found.entry(kernel.into()).or_default().registers = u32_at(elf, header + 44)? >> 24;
        } else if let Some(kernel) = name.strip_prefix(".nv.shared.").filter(|k| !k.starts_with("reserved")) {
            // From sm_90 on the first KiB of a block is the system's. It is counted here, but against no limit.
            let system = if arch >= 90 { 1024 } else { 0 };
            found.entry(kernel.into()).or_default().shared = (size as u32).saturating_sub(system);
        } else if let Some(kernel) = name.strip_prefix(".nv.info.") {
            let start = offset(section)?;
            read_info(elf.get(start..start.checked_add(size)?)?, found.entry(kernel.into()).or_default())?;
        }
    }
    Some(found)
}

/// A kernel's attributes: format, attribute, value or size, and as many bytes.
fn read_info(info: &[u8], usage: &mut Usage) -> Option<()> {
    const SIZED: u8 = 4;
    const MAX_THREADS: u8 = 0x05;
    const PARAMETER: u8 = 0x17;
    let mut at = 0;
    let mut parameters = BTreeMap::new();
    while at + 4 <= info.len() {
        let (format, attribute, value) = (info[at], info[at + 1], u16_at(info, at + 2)?);
        match attribute {
            MAX_THREADS => {
                let extent = |i: usize| u32_at(info, at + 4 + 4 * i);
                usage.max_threads = Some(extent(0)? * extent(1)? * extent(2)?);
            }
            // Index, ordinal, offset, and the size above other bits.
            PARAMETER => {
                let (ordinal, size) = (u16_at(info, at + 8)?, u32_at(info, at + 12)? >> 18);
                parameters.insert(ordinal, size as usize);
            }
            _ => {}
        }
        at += 4 + if format == SIZED { usize::from(value) } else { 0 };
    }
    usage.parameters = parameters.into_values().collect();
    Some(())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
