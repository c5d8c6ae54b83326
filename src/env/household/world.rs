//! What rooms, places and things there are.

/// A kind of thing and what can be done with it.
pub struct ObjectKind {
    pub name: &'static str,
    pub washable: bool,
    pub heatable: bool,
    pub coolable: bool,
    /// Sorts of places it is usually kept in.
    pub homes: &'static [&'static str],
    /// Rooms it is found in.
    pub rooms: &'static [&'static str],
}

const FOOD: &[&str] = &["fridge", "table", "counter"];
const DISH: &[&str] = &["cabinet", "counter", "sink"];
const TOOL: &[&str] = &["drawer", "counter", "table"];
const PAPER: &[&str] = &["desk", "shelf", "table"];
const SMALL: &[&str] = &["drawer", "dresser", "box"];
const BATH: &[&str] = &["basket", "shelf", "cabinet"];
const KITCHEN: &[&str] = &["kitchen"];
const WET: &[&str] = &["bathroom"];
const DRY: &[&str] = &["bedroom", "parlor", "study"];

const fn kind(
    name: &'static str,
    [washable, heatable, coolable]: [bool; 3],
    homes: &'static [&'static str],
    rooms: &'static [&'static str],
) -> ObjectKind {
    ObjectKind { name, washable, heatable, coolable, homes, rooms }
}

pub const KINDS: &[ObjectKind] = &[
    kind("apple", [true, true, true], FOOD, KITCHEN),
    kind("tomato", [true, true, true], FOOD, KITCHEN),
    kind("potato", [true, true, true], FOOD, KITCHEN),
    kind("egg", [false, true, true], FOOD, KITCHEN),
    kind("bread", [false, true, true], FOOD, KITCHEN),
    kind("mug", [true, true, true], DISH, KITCHEN),
    kind("cup", [true, true, true], DISH, KITCHEN),
    kind("plate", [true, true, true], DISH, KITCHEN),
    kind("bowl", [true, true, true], DISH, KITCHEN),
    kind("fork", [true, false, false], TOOL, KITCHEN),
    kind("spoon", [true, false, false], TOOL, KITCHEN),
    kind("knife", [true, false, false], TOOL, KITCHEN),
    kind("towel", [true, false, false], BATH, WET),
    kind("cloth", [true, false, false], BATH, WET),
    kind("soap", [true, false, false], BATH, WET),
    kind("brush", [true, false, false], SMALL, WET),
    kind("book", [false, false, false], PAPER, DRY),
    kind("letter", [false, false, false], PAPER, DRY),
    kind("pen", [false, false, false], PAPER, DRY),
    kind("phone", [false, false, false], SMALL, DRY),
    kind("key", [false, false, false], SMALL, DRY),
    kind("watch", [false, false, false], SMALL, DRY),
];

/// The kind with this name.
pub fn kind_named(name: &str) -> Option<&'static ObjectKind> {
    KINDS.iter().find(|k| k.name == name)
}

/// A room: the places it always has, and the sorts that its other places are drawn from.
pub struct Room {
    pub name: &'static str,
    pub fixtures: &'static [&'static str],
    pub others: &'static [&'static str],
    pub lamp: bool,
}

/// Scene n is laid out as room n modulo their number.
pub const ROOMS: [Room; 6] = [
    Room {
        name: "kitchen",
        fixtures: &["fridge", "sink", "stove"],
        others: &["counter", "table", "shelf", "drawer", "cabinet"],
        lamp: true,
    },
    Room { name: "bathroom", fixtures: &["sink"], others: &["shelf", "cabinet", "drawer", "basket"], lamp: false },
    Room {
        name: "kitchen",
        fixtures: &["fridge", "sink", "stove"],
        others: &["counter", "table", "shelf", "drawer", "cabinet"],
        lamp: true,
    },
    Room { name: "bedroom", fixtures: &["bed"], others: &["desk", "dresser", "drawer", "shelf", "box"], lamp: true },
    Room { name: "parlor", fixtures: &["sofa"], others: &["table", "shelf", "cabinet", "drawer", "box"], lamp: true },
    Room { name: "study", fixtures: &["desk"], others: &["desk", "shelf", "drawer", "box", "table"], lamp: true },
];

/// Whether things are hidden until a place of this sort is opened.
pub fn openable(sort: &str) -> bool {
    matches!(sort, "fridge" | "drawer" | "cabinet" | "box" | "dresser")
}

/// Whether things can be left in a place of this sort.
pub fn stores(sort: &str) -> bool {
    !matches!(sort, "sink" | "stove")
}

/// Whether a task may want things put there. A fridge is for cooling: were things put away in it as well, a task would be read by its
/// last word alone.
pub fn keeps(sort: &str) -> bool {
    stores(sort) && sort != "fridge"
}

/// A small generator of random numbers (SplitMix64): the same numbers on every machine, for ever.
pub struct Random(u64);

impl Random {
    pub fn new(parts: &[u64]) -> Self {
        let mut random = Self(0x5851_F42D_4C95_7F2D);
        for part in parts {
            random.0 = random.next() ^ part;
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 when `n` is 0).
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}
