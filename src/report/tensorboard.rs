//! TensorBoard event files: a TFRecord stream of protobuf `Event`s, of which only scalars are needed.
//!
//! A record is `length: u64, crc(length): u32, data, crc(data): u32`, little-endian, with masked CRC-32C.

use crate::files::FileError;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Appends scalar events to one event file.
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates the folder and in it an event file with TensorBoard's header.
    pub fn create(folder: &Path) -> Result<EventWriter, FileError> {
        std::fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        let now = SystemTime::now();
        let path = folder.join(format!("events.out.tfevents.{}.uncouple", seconds(now) as u64));
        let file = File::create(&path).map_err(|e| FileError::new("create", &path, e))?;
        let mut writer = EventWriter { path, file };
        let mut event = ProtoMessage::default();
        event.double(1, seconds(now));
        event.bytes(3, b"brain.Event:2");
        writer.write(&event)?;
        Ok(writer)
    }

    /// Writes one event that holds a step's scalars.
    pub fn scalars(
        &mut self,
        time: SystemTime,
        step: u64,
        values: impl Iterator<Item = (String, f64)>,
    ) -> Result<(), FileError> {
        let mut summary = ProtoMessage::default();
        for (tag, number) in values {
            let mut value = ProtoMessage::default();
            value.bytes(1, tag.as_bytes());
            value.float(2, number as f32);
            summary.bytes(1, &value.0);
        }
        let mut event = ProtoMessage::default();
        event.double(1, seconds(time));
        event.int(2, step);
        event.bytes(5, &summary.0);
        self.write(&event)
    }

    fn write(&mut self, event: &ProtoMessage) -> Result<(), FileError> {
        let (length, data) = ((event.0.len() as u64).to_le_bytes(), &event.0);
        let crc = |bytes: &[u8]| masked(crc32c(bytes)).to_le_bytes();
        let record = [&length[..], &crc(&length), data, &crc(data)].concat();
        self.file.write_all(&record).map_err(|e| FileError::new("append to", &self.path, e))
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A protobuf message under construction: each call adds a field by its number.
#[derive(Default)]
struct ProtoMessage(Vec<u8>);

impl ProtoMessage {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn int(&mut self, field: u64, value: u64) {
        self.key(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

/// CRC-32C (Castagnoli), bit by bit: events are small and few.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

/// TFRecord's masking, so that the CRC of data that holds CRCs stays useful.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    #[test]
    fn crc_of_the_standard_check_string() {
        assert_eq!(super::crc32c(b"123456789"), 0xe306_9283);
    }
}
