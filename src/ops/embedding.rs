//! Embedding: `y[t] = W[token[t]]`.

pub(crate) mod case;

/// Gathers rows of `table` `[vocab, hidden]` into `y` `[tokens, hidden]`.
pub fn forward(tokens: &[u32], table: &[f32], hidden: usize, y: &mut [f32]) {
    for (&token, row) in tokens.iter().zip(y.chunks_exact_mut(hidden)) {
        row.copy_from_slice(&table[token as usize * hidden..][..hidden]);
    }
}

/// `d_table[token[t]] += dy[t]`, in token order: deterministic.
pub fn backward(tokens: &[u32], dy: &[f32], hidden: usize, d_table: &mut [f32]) {
    for (&token, row) in tokens.iter().zip(dy.chunks_exact(hidden)) {
        for (d, g) in d_table[token as usize * hidden..][..hidden].iter_mut().zip(row) {
            *d += g;
        }
    }
}

/// On a GPU: activations in bf16 `[tokens, hidden]`, tables `[vocab, hidden]`; `hidden` is a multiple of 8.
pub mod cuda {
    use crate::device::{Arg, Error, Gpu, Launch, Packed, Real, Result, Slice, Tensor, Unpacked, expect};
    use half::bf16;

    /// Tokens on the device, and where each distinct one occurs: what a deterministic backward pass sums by.
    pub struct Tokens {
        /// The token of each row.
        pub ids: Tensor<u32>,
        vocab: usize,
        distinct: Tensor<u32>,
        start: Tensor<u32>,
        order: Tensor<u32>,
    }

    impl Tokens {
        /// Refuses a token that is not in the vocabulary.
        ///
        /// # Errors
        /// If a token is not in the vocabulary, or there is too little device memory.
        pub fn new(gpu: &Gpu, tokens: &[u32], vocab: usize) -> Result<Tokens> {
            let mut packed = Packed::default();
            let tokens = Tokens::pack(&mut packed, tokens, vocab)?;
            Ok(tokens(&mut packed.upload(gpu)?))
        }

        /// The same beside other lists.
        ///
        /// # Errors
        /// If a token is not in the vocabulary.
        pub fn pack(
            packed: &mut Packed,
            tokens: &[u32],
            vocab: usize,
        ) -> Result<impl FnOnce(&mut Unpacked) -> Tokens + use<>> {
            if let Some((at, token)) = tokens.iter().enumerate().find(|(_, t)| **t as usize >= vocab) {
                let sizes = format!("token {token} at {at} is not in a vocabulary of {vocab}");
                return Err(Error::Shape { op: "embedding", sizes });
            }
            let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
            order.sort_by_key(|i| tokens[*i as usize]);
            let (mut distinct, mut start) = (Vec::new(), Vec::new());
            for (at, i) in order.iter().enumerate() {
                let token = tokens[*i as usize];
                if distinct.last() != Some(&token) {
                    distinct.push(token);
                    start.push(at as u32);
                }
            }
            start.push(order.len() as u32);
            let lists = [tokens, &distinct, &start, &order].map(|list| packed.add(list));
            Ok(move |on: &mut Unpacked| {
                let [ids, distinct, start, order] = lists.map(|list| on.take(list));
                Tokens { ids, vocab, distinct, start, order }
            })
        }

        fn check(&self, op: &'static str, table: usize, rows: usize, hidden: usize) -> Result<()> {
            let fits = hidden > 0 && hidden.is_multiple_of(8) && table == self.vocab * hidden;
            expect(op, fits && rows == self.ids.len() * hidden, || {
                let (n, vocab) = (self.ids.len(), self.vocab);
                format!(
                    "a table of {table} and rows of {rows} elements for {n} of {vocab} tokens of {hidden} (multiple of 8)"
                )
            })
        }
    }

    /// `y[i] = table[tokens[i]]`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn forward(gpu: &Gpu, tokens: &Tokens, table: &Slice<bf16>, hidden: usize, y: &Slice<bf16>) -> Result<()> {
        tokens.check("embedding forward", table.len(), y.len(), hidden)?;
        gather(gpu, &tokens.ids, table, hidden, y)
    }

    /// `y[i] = table[ids[i]]`, all of them rows that the table has.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn gather(gpu: &Gpu, ids: &Slice<u32>, table: &Slice<bf16>, hidden: usize, y: &Slice<bf16>) -> Result<()> {
        let (n, fits) = (ids.len(), hidden > 0 && hidden.is_multiple_of(8));
        expect("embedding forward", fits && y.len() == n * hidden, || {
            format!("{} elements for {n} rows of {hidden} (a multiple of 8)", y.len())
        })?;
        let sizes = [n, hidden].map(|n| Arg::from(n as i32));
        let args = [ids.arg(), table.arg(), y.arg(), sizes[0], sizes[1]];
        gpu.launch_threads("embedding_forward_bf16", y.len() / 8, &args)
    }

    /// Rows to be put elsewhere: (from, to), no two `to` the same.
    pub struct Moves {
        /// All `from`, then all `to`.
        lists: Tensor<u32>,
        /// Rows that there are to take from, and to put in.
        rows: [usize; 2],
    }

    impl Moves {
        /// Refuses a row beyond those that there are.
        ///
        /// # Errors
        /// If a row is out of range, or there is too little device memory.
        pub fn new(gpu: &Gpu, moves: &[(u32, u32)], rows: [usize; 2]) -> Result<Moves> {
            let mut packed = Packed::default();
            let moves = Moves::pack(&mut packed, moves, rows)?;
            Ok(moves(&mut packed.upload(gpu)?))
        }

        /// The same beside other lists.
        ///
        /// # Errors
        /// If a row is out of range.
        pub fn pack(
            packed: &mut Packed,
            moves: &[(u32, u32)],
            rows: [usize; 2],
        ) -> Result<impl FnOnce(&mut Unpacked) -> Moves + use<>> {
            let lists = packed.add(&Moves::checked(moves, rows)?);
            Ok(move |on: &mut Unpacked| Moves { lists: on.take(lists), rows })
        }

        /// The lists' elements.
        fn checked(moves: &[(u32, u32)], rows: [usize; 2]) -> Result<Vec<u32>> {
            let (from, to): (Vec<u32>, Vec<u32>) = moves.iter().copied().unzip();
            let inside = |list: &[u32], rows: usize| list.iter().all(|row| (*row as usize) < rows);
            expect("embedding place", inside(&from, rows[0]) && inside(&to, rows[1]), || {
                format!("moves {moves:?} of {rows:?} rows")
            })?;
            Ok([from, to].concat())
        }

        /// What other moves, as many, make of the lists.
        ///
        /// # Errors
        /// If a row is out of range.
        pub fn replaced(&self, moves: &[(u32, u32)]) -> Result<Vec<u32>> {
            Moves::checked(moves, self.rows)
        }

        /// All rows to take from, then all rows to put in.
        pub fn lists(&self) -> &Slice<u32> {
            &self.lists
        }

        /// Rows that there are to take from, and to put in.
        pub fn rows(&self) -> [usize; 2] {
            self.rows
        }
    }

    /// `table[to] = y[from]` for each of `moves`.
    ///
    /// # Errors
    /// If the sizes do not fit together, or the launch fails.
    pub fn place(gpu: &Gpu, y: &Slice<bf16>, moves: &Moves, hidden: usize, table: &Slice<bf16>) -> Result<()> {
        let (lengths, wanted) = ([y.len(), table.len()], moves.rows.map(|n| n * hidden));
        expect("embedding place", hidden > 0 && hidden.is_multiple_of(8) && lengths == wanted, || {
            format!("{lengths:?} elements for {:?} rows of {hidden} (a multiple of 8)", moves.rows)
        })?;
        let n = moves.lists.len() / 2;
        let (from, to) = (moves.lists.arg(), Arg::Address(moves.lists.address() + (n * size_of::<u32>()) as u64));
        let sizes = [n, hidden].map(|n| Arg::from(n as i32));
        let args = [from, to, y.arg(), table.arg(), sizes[0], sizes[1]];
        gpu.launch_threads("embedding_place_bf16", n * hidden / 8, &args)
    }

    /// Adds to `d_table`, in token order.
    ///
    /// # Errors
    /// If the sizes do not fit together, or a launch fails.
    pub fn backward<T: Real>(
        gpu: &Gpu,
        tokens: &Tokens,
        dy: &Slice<bf16>,
        hidden: usize,
        d_table: &Slice<T>,
    ) -> Result<()> {
        tokens.check("embedding backward", d_table.len(), dy.len(), hidden)?;
        let [distinct, start, order] = [&tokens.distinct, &tokens.start, &tokens.order].map(|list| list.arg());
        let args = [distinct, start, order, dy.arg(), d_table.arg(), Arg::from(hidden as i32)];
        let (grid, block) = ([tokens.distinct.len() as u32, hidden.div_ceil(1024) as u32, 1], [128, 1, 1]);
        let kernel = format!("embedding_backward_{}", T::NAME);
        gpu.launch(Launch { kernel: &kernel, grid, block, shared: 0, args: &args })
    }
}
