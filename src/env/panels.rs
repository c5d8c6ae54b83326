//! The splits of a suite that lists all its tasks.

use super::household::Random;
use super::{EnvError, Split, Task};
use std::collections::HashMap;

/// Tasks by split, in the order of evaluation.
#[derive(Debug)]
pub(super) struct Panels {
    /// Of the suite, for messages.
    name: String,
    /// Orders the training tasks.
    seed: u64,
    splits: HashMap<Split, Vec<Task>>,
}

impl Panels {
    pub fn new(name: &str, seed: u64, tasks: impl IntoIterator<Item = Task>) -> Panels {
        let mut splits: HashMap<Split, Vec<Task>> = HashMap::new();
        for task in tasks {
            splits.entry(task.split).or_default().push(task);
        }
        Panels { name: name.into(), seed, splits }
    }

    fn of(&self, split: Split) -> &[Task] {
        self.splits.get(&split).map_or(&[], Vec::as_slice)
    }

    /// As [`super::Suite::task`]: training tasks come shuffled anew in every pass over them.
    pub fn task(&self, split: Split, index: u64) -> Result<Task, EnvError> {
        let tasks = self.of(split);
        let count = tasks.len() as u64;
        let place = match split {
            Split::Train if count > 0 => shuffled(tasks.len(), self.seed, index / count)[(index % count) as usize],
            _ => index as usize,
        };
        tasks.get(place).cloned().ok_or_else(|| EnvError::BadGame {
            file: format!("{} {split} {index}", self.name),
            reason: format!("the split has {count} tasks"),
        })
    }

    /// As [`super::Suite::len`].
    pub fn len(&self, split: Split) -> Option<u64> {
        (split != Split::Train).then_some(self.of(split).len() as u64)
    }
}

/// The numbers below `count`, in an order of their own for each pass.
fn shuffled(count: usize, seed: u64, pass: u64) -> Vec<usize> {
    let mut random = Random::new(&[6, seed, pass]);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}
