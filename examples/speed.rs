use std::sync::Arc;
use std::time::Instant;
use uncouple::config::Optim;
use uncouple::model::{KvCache, Model, Params, Qwen2Config};
use uncouple::ops::philox;
use uncouple::train::learner::Learner;
fn main() {
    let c = Qwen2Config {
        vocab_size: 2048,
        hidden_size: 256,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        intermediate_size: 704,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        tie_word_embeddings: true,
    };
    let p = Params::random(&c, 0);
    println!("params {}", p.flat.len());
    let m = Model::new(c, p);
    let mut l = Learner::new(m, false);
    let seqs: Vec<Vec<u32>> = (0..16).map(|i| (0..256).map(|t| philox::block(i, 3, t)[0] % 2048).collect()).collect();
    let mask = vec![true; 256];
    let batch: Vec<(&[u32], &[bool])> = seqs.iter().map(|s| (&s[..], &mask[..])).collect();
    let o = Optim::default();
    for _ in 0..8 {
        let t = Instant::now();
        let loss = l.cross_entropy(&batch);
        let t1 = t.elapsed().as_secs_f64();
        l.step(&o, 1e-3);
        println!(
            "train {:.1} ms (opt {:.1}) loss {loss:.4}",
            t.elapsed().as_secs_f64() * 1e3,
            (t.elapsed().as_secs_f64() - t1) * 1e3
        );
    }
    let f = uncouple::forest::Forest::new(&seqs);
    let mut a = Default::default();
    for _ in 0..5 {
        let t = Instant::now();
        l.model.forward(&f, uncouple::model::Keep::All, &mut a);
        println!("fwd {:.1}", t.elapsed().as_secs_f64() * 1e3);
    }
    for _ in 0..3 {
        let t = Instant::now();
        let mut cache = KvCache::new(&l.model.config);
        let slots: Vec<_> = (0..64).map(|_| cache.alloc()).collect();
        let pr: Vec<Vec<u32>> = (0..64).map(|i| (0..64).map(|t| philox::block(i, 5, t)[0] % 2048).collect()).collect();
        let mut feeds: Vec<Vec<u32>> = pr;
        for step in 0..128 {
            let fs: Vec<_> = slots.iter().zip(&feeds).map(|(s, f)| (*s, &f[..])).collect();
            let h = l.model.extend(&mut cache, &fs);
            if step == 0 {
                println!("  prefill {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
            }
            let lg = l.model.logits(&h);
            feeds = lg
                .chunks(2048)
                .map(|r| {
                    let mut b = 0;
                    for i in 0..2048 {
                        if r[i] > r[b] {
                            b = i
                        }
                    }
                    vec![b as u32]
                })
                .collect();
        }
        println!("generate 64x128: {:.1} ms", t.elapsed().as_secs_f64() * 1e3);
    }
}
