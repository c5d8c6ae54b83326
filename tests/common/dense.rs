//! Qwen2 in plain f64, one sequence at a time, straight from the formulas.

use uncouple::model::Model;

type Rows = Vec<Vec<f64>>;

fn tensor<'a>(m: &'a Model, name: &str) -> &'a [f32] {
    m.params.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
}

fn linear(x: &Rows, w: &[f32], b: Option<&[f32]>) -> Rows {
    let n_in = x[0].len();
    let row = |x: &Vec<f64>| {
        let out = w.chunks(n_in).map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>());
        out.enumerate().map(|(i, y)| y + b.map_or(0.0, |b| f64::from(b[i]))).collect()
    };
    x.iter().map(row).collect()
}

fn norm(x: &Rows, w: &[f32], eps: f64) -> Rows {
    let row = |x: &Vec<f64>| {
        let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
        x.iter().zip(w).map(|(x, w)| x * r * f64::from(*w)).collect()
    };
    x.iter().map(row).collect()
}

fn rotate(x: &mut [f64], position: usize, theta: f64) {
    let half = x.len() / 2;
    for j in 0..half {
        let (sin, cos) = (position as f64 / theta.powf(j as f64 / half as f64)).sin_cos();
        (x[j], x[j + half]) = (x[j] * cos - x[j + half] * sin, x[j + half] * cos + x[j] * sin);
    }
}

fn add(x: &mut Rows, y: Rows) {
    x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
}

fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::MIN, f64::max);
    x.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// Final-normed hidden states.
pub fn hidden(m: &Model, tokens: &[u32]) -> Rows {
    let (c, d) = (&m.config, m.config.head_dim);
    let (eps, theta, group) =
        (f64::from(c.rms_norm_eps), f64::from(c.rope_theta), c.num_attention_heads / c.num_key_value_heads);
    let embed = tensor(m, "model.embed_tokens.weight");
    let mut x: Rows = tokens
        .iter()
        .map(|&t| embed[t as usize * c.hidden_size..][..c.hidden_size].iter().map(|v| f64::from(*v)).collect())
        .collect();
    for l in 0..c.num_hidden_layers {
        let w = |tail: &str| tensor(m, &format!("model.layers.{l}.{tail}"));
        let h = norm(&x, w("input_layernorm.weight"), eps);
        let project = |n: &str| {
            linear(&h, w(&format!("self_attn.{n}_proj.weight")), Some(w(&format!("self_attn.{n}_proj.bias"))))
        };
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        for rows in [&mut q, &mut k] {
            rows.iter_mut().enumerate().for_each(|(t, r)| r.chunks_mut(d).for_each(|h| rotate(h, t, theta)));
        }
        let attend = |t: usize| {
            let mut out = vec![0.0; c.num_attention_heads * d];
            for head in 0..c.num_attention_heads {
                let kv = head / group * d;
                let dot = |s: usize| (0..d).map(|j| q[t][head * d + j] * k[s][kv + j]).sum::<f64>() / (d as f64).sqrt();
                let mut p: Vec<f64> = (0..=t).map(dot).collect();
                softmax(&mut p);
                for (s, p) in p.iter().enumerate() {
                    (0..d).for_each(|j| out[head * d + j] += p * v[s][kv + j]);
                }
            }
            out
        };
        let attn: Rows = (0..tokens.len()).map(attend).collect();
        add(&mut x, linear(&attn, w("self_attn.o_proj.weight"), None));
        let h = norm(&x, w("post_attention_layernorm.weight"), eps);
        let (mut gate, up) = (linear(&h, w("mlp.gate_proj.weight"), None), linear(&h, w("mlp.up_proj.weight"), None));
        for (g, u) in gate.iter_mut().zip(up) {
            g.iter_mut().zip(u).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
        }
        add(&mut x, linear(&gate, w("mlp.down_proj.weight"), None));
    }
    norm(&x, tensor(m, "model.norm.weight"), eps)
}

/// Σ over scored tokens of weight · (logp + entropy_weight · entropy) at a temperature.
pub fn loss(m: &Model, tokens: &[u32], temperature: f64, entropy_weight: f64) -> f64 {
    let head = if m.config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
    let mut p = linear(&hidden(m, tokens), tensor(m, head), None);
    let mut total = 0.0;
    for t in 1..tokens.len() {
        let row = &mut p[t - 1];
        row.iter_mut().for_each(|l| *l /= temperature);
        softmax(row);
        let entropy: f64 = row.iter().map(|p| -p * p.ln()).sum();
        let w = f64::from(super::weight(tokens[t], t as u32));
        total += w * (row[tokens[t] as usize].ln() + entropy_weight * entropy);
    }
    total
}
