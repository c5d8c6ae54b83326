//! Matrix products of a warpgroup, four warps: D (64 × n) += A (64 × 16) · B (16 × n), bf16 with f32 sums, asynchronous.
//!
//! The sums are computed when the last of the 128 lanes asks, but until its wait a lane may neither look at the registers of a
//! product (`Use` counts, the kernel's accessors tell) nor may anyone change the operands in shared memory: each wait gathers them
//! again and compares.

use crate::block::{Line, Runner, State};
use crate::bulk::Swizzle;
use std::rc::Rc;

/// Of a lane's registers, as in `common/wgmma.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Use {
    /// Products that have been issued and not been waited for.
    under_way: u32,
    /// Looked at since the last fence.
    touched: u32,
}

/// What a lane brings, as in `common/wgmma.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Product {
    d: *mut f32,
    d_use: *mut Use,
    /// Null where A is in shared memory.
    a: *const u32,
    a_use: *mut Use,
    a_operand: u64,
    b_operand: u64,
    n: u32,
    /// Whether shared memory has rows of consecutive m or n, not of consecutive k.
    a_transposed: u32,
    b_transposed: u32,
    accumulate: u32,
}

/// A product under way, of one lane.
pub struct Flight {
    group: u32,
    uses: [*mut Use; 2],
    operands: Rc<Operands>,
}

/// Elements of A (none where it is in registers) and of B, `[16 k, extent]`.
type Contents = (Vec<u16>, Vec<u16>);

struct Operands {
    a: Option<(u64, bool)>,
    b: (u64, bool, usize),
    /// Their contents when they were issued.
    held: Contents,
    line: Line,
}

/// The lane and the register that hold the sum of a row and a column.
fn sum_at(row: usize, column: usize) -> (usize, usize) {
    (lane_at(row, column), column / 8 * 4 + row / 8 % 2 * 2 + column % 2)
}

/// The lane, the register and the half of it that hold an element of A in registers.
fn left_at(row: usize, k: usize) -> (usize, usize, usize) {
    (lane_at(row, k), row / 8 % 2 + k / 8 * 2, k % 2)
}

/// A warp has 16 rows, four lanes a row of each 8: two columns of every 8 are a lane's.
fn lane_at(row: usize, column: usize) -> usize {
    row / 16 * 32 + row % 8 * 4 + column % 8 / 2
}

/// Where a descriptor says that an operand's elements are.
struct Layout {
    start: usize,
    leading: usize,
    stride: usize,
    swizzle: Swizzle,
    /// Consecutive in the extent, not in k.
    transposed: bool,
}

impl Layout {
    fn decode(operand: u64, transposed: bool) -> Option<Layout> {
        let field = |at: u32| (operand >> at & 0x3FFF) as usize * 16;
        let swizzle = match operand >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => return None,
        };
        // A pattern that begins elsewhere than at its alignment is not used.
        let aligned = operand >> 49 & 7 == 0;
        aligned.then(|| Layout { start: field(0), leading: field(16), stride: field(32), swizzle, transposed })
    }

    /// The shared address of 8 elements from (k, i) on, in the direction that is consecutive.
    fn chunk(&self, k: usize, i: usize) -> usize {
        let Layout { start, leading, stride, swizzle, transposed } = *self;
        swizzle.permute(
            start
                + match (transposed, swizzle.row()) {
                    (false, None) => i % 8 * 16 + i / 8 * stride + k / 8 * leading,
                    (false, Some(row)) => i % 8 * row + i / 8 * stride + k * 2,
                    (true, None) => i / 8 * stride + k % 8 * 16 + k / 8 * leading,
                    (true, Some(row)) => i % (row / 2) * 2 + i / (row / 2) * leading + k % 8 * row + k / 8 * stride,
                },
        )
    }
}

impl Runner<'_> {
    pub fn arrive_at_product(&mut self, product: Product, line: Line) {
        let (me, first) = (self.running, self.running / 128 * 128);
        self.threads[me].state = State::Product { product, line };
        if self.threads.len() < first + 128 {
            return self.blame(line, "a product of a warpgroup that has less than four warps".into());
        }
        let uses = [product.d_use, product.a_use];
        // SAFETY: the lane's own, alive while it waits here.
        if uses.iter().any(|u| unsafe { u.as_ref() }.is_some_and(|u| u.touched != 0)) {
            return self.blame(line, "registers of a product were touched since the last fence".into());
        }
        let mut lanes = Vec::with_capacity(128);
        for t in first..first + 128 {
            match self.threads[t].state {
                State::Product { product: other, line: at } => {
                    let same = |p: Product| (p.a_operand, p.b_operand, p.n, p.accumulate, p.a.is_null());
                    if at != line || same(other) != same(product) {
                        return self.blame(
                            line,
                            format!("thread {t} of the warpgroup is in another product, at {}", at.site()),
                        );
                    }
                    lanes.push(other);
                }
                State::Returned => {
                    return self.blame(line, format!("a product of a warpgroup whose thread {t} has returned"));
                }
                _ => return,
            }
        }
        self.multiply(first, &lanes, line);
        (first..first + 128).for_each(|t| self.wake(t));
    }

    fn multiply(&mut self, first: usize, lanes: &[Product], line: Line) {
        let Product { a, a_operand, a_transposed, b_operand, b_transposed, accumulate, n, .. } = lanes[0];
        let n = n as usize;
        let b_operand = (b_operand, b_transposed != 0, n);
        let a_operand = a.is_null().then_some((a_operand, a_transposed != 0));
        let Some((held, shown)) = self.gather_operands(a_operand, b_operand) else {
            return self.blame(line, "an operand lies outside of shared memory, or its descriptor is none".into());
        };
        if !shown {
            return self.blame(line, "an operand was stored by threads that have not shown their stores".into());
        }
        #[cfg(feature = "counters")]
        crate::counters::flops(2 * 64 * 16 * n as u64);
        let widen = |bits: u16| f32::from_bits(u32::from(bits) << 16);
        let b: Vec<f32> = held.1.iter().map(|&x| widen(x)).collect();
        for row in 0..64 {
            let mut left = [0.0; 16];
            for (k, x) in left.iter_mut().enumerate() {
                let (lane, register, half) = left_at(row, k);
                // SAFETY: four registers of a lane that waits here.
                let pair = || unsafe { *lanes[lane].a.add(register) };
                *x = widen(if a_operand.is_some() { held.0[k * 64 + row] } else { (pair() >> (16 * half)) as u16 });
            }
            let mut sums = vec![0.0f32; n];
            for (x, b) in left.iter().zip(b.chunks_exact(n)) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += x * b);
            }
            for (column, sum) in sums.iter().enumerate() {
                let (lane, register) = sum_at(row, column);
                // SAFETY: n / 2 registers of a lane that waits here.
                unsafe {
                    let d = lanes[lane].d.add(register);
                    *d = if accumulate != 0 { *d } else { 0.0 } + sum;
                }
            }
        }
        let operands = Rc::new(Operands { a: a_operand, b: b_operand, held, line });
        for (lane, product) in lanes.iter().enumerate() {
            let uses = [product.d_use, product.a_use];
            let thread = &mut self.threads[first + lane];
            // SAFETY: registers are not given up while they are under way: their destructor tells.
            uses.iter().for_each(|u| unsafe { u.as_mut() }.into_iter().for_each(|u| u.under_way += 1));
            thread.flights.push(Flight { group: thread.product_groups, uses, operands: Rc::clone(&operands) });
        }
    }

    pub fn product_commit(&mut self) {
        self.threads[self.running].product_groups += 1;
    }

    /// Waits until at most the last `pending` groups are under way.
    pub fn product_wait(&mut self, pending: u32) {
        let me = self.running;
        let thread = &mut self.threads[me];
        let groups = thread.product_groups;
        let done: Vec<Flight> = thread.flights.extract_if(.., |f| f.group + pending < groups).collect();
        for flight in done {
            // SAFETY: as in `multiply`.
            flight.uses.iter().for_each(|u| unsafe { u.as_mut() }.into_iter().for_each(|u| u.under_way -= 1));
            let Operands { a, b, held, line } = &*flight.operands;
            // Once a warp.
            if me.is_multiple_of(32) && self.gather_operands(*a, *b).is_none_or(|(now, _)| now != *held) {
                let problem = "an operand of this product changed in shared memory before it was waited for";
                self.blame(*line, problem.into());
            }
        }
    }

    /// Both operands, and whether products see them as they are.
    fn gather_operands(&self, a: Option<(u64, bool)>, b: (u64, bool, usize)) -> Option<(Contents, bool)> {
        let nothing = || Some((Vec::new(), true));
        let (a, a_shown) = a.map_or_else(nothing, |(operand, transposed)| self.gather(operand, transposed, 64))?;
        let (b, b_shown) = self.gather(b.0, b.1, b.2)?;
        Some(((a, b), a_shown && b_shown))
    }

    /// `[16 k, extent]` of what a descriptor names, `transposed` being consecutive in the extent; and whether products see it so.
    fn gather(&self, operand: u64, transposed: bool, extent: usize) -> Option<(Vec<u16>, bool)> {
        let layout = Layout::decode(operand, transposed)?;
        let (mut values, mut all_shown) = (vec![0; 16 * extent], true);
        let (k_step, i_step) = if transposed { (1, 8) } else { (8, 1) };
        for k in (0..16).step_by(k_step) {
            for i in (0..extent).step_by(i_step) {
                let (elements, shown) = self.shared_chunk(layout.chunk(k, i))?;
                all_shown &= shown;
                for (e, x) in elements.into_iter().enumerate() {
                    values[if transposed { k * extent + i + e } else { (k + e) * extent + i }] = x;
                }
            }
        }
        Some((values, all_shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of a kind: the numbers after its name.
    fn lines(kind: &str) -> Vec<Vec<usize>> {
        let lines =
            include_str!("../tests/layouts.txt").lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
        lines.map(|line| line.split(' ').map(number).collect()).collect()
    }

    /// Descriptors are hexadecimal, of 16 digits.
    fn number(text: &str) -> usize {
        usize::from_str_radix(text, if text.len() == 16 { 16 } else { 10 }).unwrap()
    }

    #[test]
    fn operands_lie_where_descriptors_say() {
        let lines = lines("operand");
        assert!(lines.len() > 20);
        for line in lines {
            let transposed = line[0] == 1;
            let layout = Layout::decode(line[2] as u64, transposed).unwrap();
            let at = |k: usize, i: usize| match transposed {
                true => layout.chunk(k, i / 8 * 8) + i % 8 * 2,
                false => layout.chunk(k / 8 * 8, i) + k % 8 * 2,
            };
            let expected = &line[3..];
            let got = [0, 1, 7, 8, 15].map(|k| [0, 1, 2, 7, 8, 31, 32, 63].map(|i| at(k, i))).concat();
            assert_eq!(got, expected, "{:016x}, transposed: {transposed}", line[2]);
        }
    }

    #[test]
    fn registers_hold_the_elements_that_they_should() {
        for line in lines("sums") {
            for (register, place) in line[2..].iter().enumerate() {
                assert_eq!(sum_at(place % 64, place / 64), (line[1], register));
            }
        }
        for line in lines("left") {
            for (value, place) in line[1..].iter().enumerate() {
                assert_eq!(left_at(place % 64, place / 64), (line[0], value / 2, value % 2));
            }
        }
    }

    #[test]
    fn boxes_are_swizzled_as_they_should() {
        for line in lines("box") {
            let swizzle = if line[0] == 128 { Swizzle::B128 } else { Swizzle::B64 };
            let at = |row: usize, column: usize| swizzle.permute(row * line[0] + column / 8 * 16) + column % 8 * 2;
            let got = (0..9).flat_map(|row| [0, 1, 7, 8, 9, 31].map(|column| at(row, column)));
            assert_eq!(got.collect::<Vec<_>>(), line[1..]);
        }
    }
}
