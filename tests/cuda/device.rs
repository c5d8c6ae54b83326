//! The device's host side: memory, graphs and products on the emulated device, the arena, and a machine without a GPU.

use crate::emulated;

use emulated::gpu;
use half::bf16;
use uncouple::device::{Arena, Arg, Dtype, Error, Launch, Matmul, Operand, Slice, cuda};

#[test]
fn memory_comes_and_goes() {
    let gpu = gpu();
    let a = gpu.tensor(&[1.0f32, 2.0, 3.0]).unwrap();
    let b = gpu.zeros::<f32>(3).unwrap();
    assert_eq!(gpu.read(&b).unwrap(), [0.0; 3]);
    gpu.copy(&a, &b).unwrap();
    gpu.write(&b.part(1..2).unwrap(), &[7.0]).unwrap();
    assert_eq!(gpu.read(&b).unwrap(), [1.0, 7.0, 3.0]);
    assert_eq!(gpu.read(&b.part(2..3).unwrap()).unwrap(), [3.0]);
    assert!(b.part(2..4).is_none());
    let refused = gpu.write(&b, &[1.0]).unwrap_err();
    assert!(matches!(refused, Error::Shape { .. }) && refused.to_string().contains("1 elements"), "{refused}");
    assert!(gpu.read(&gpu.uninit::<f32>(5).unwrap()).unwrap_err().to_string().contains("never written"));
    assert!(gpu.read(&gpu.uninit::<f32>(0).unwrap()).unwrap().is_empty());
}

#[test]
fn launches_by_name_and_their_errors() {
    let gpu = gpu();
    let (x, y) = (gpu.tensor(&[1.0f32; 40]).unwrap(), gpu.zeros::<f32>(40).unwrap());
    let copy = |kernel: &str, n: i32| {
        let args = [x.arg(), y.arg(), Arg::from(n)];
        gpu.launch(Launch { kernel, grid: [2, 1, 1], block: [32, 1, 1], shared: 0, args: &args })
    };
    copy("planted_copy", 40).unwrap();
    assert_eq!(gpu.read(&y).unwrap(), [1.0; 40]);
    let unknown = copy("planted_nothing", 40).unwrap_err().to_string();
    assert!(unknown.contains("planted_nothing") && unknown.contains("[2, 1, 1]"), "{unknown}");
    // An empty grid is nothing to do, whatever the kernel.
    gpu.launch_threads("planted_nothing", 0, &[]).unwrap();
    let many = gpu.launch_threads("planted_copy", 1 << 33, &[]).unwrap_err().to_string();
    assert!(many.contains("8589934592 threads"), "{many}");
}

#[test]
fn a_graph_repeats_what_was_noted() {
    let gpu = gpu();
    let (x, y) = (gpu.tensor(&[1.0f32; 40]).unwrap(), gpu.zeros::<f32>(40).unwrap());
    let args = [x.arg(), y.arg(), Arg::from(40i32)];
    let launch =
        || gpu.launch(Launch { kernel: "planted_copy", grid: [2, 1, 1], block: [32, 1, 1], shared: 0, args: &args });
    let graph = gpu.capture(launch).unwrap();
    assert_eq!(gpu.read(&y).unwrap(), [0.0; 40], "captured, not done");
    for value in [2.0, 3.0] {
        gpu.write(&x, &[value; 40]).unwrap();
        graph.replay().unwrap();
        assert_eq!(gpu.read(&y).unwrap(), [value; 40]);
    }
}

/// Whole numbers, so that sums are exact in any order.
fn integers(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
}

#[test]
fn products_of_every_layout_dtype_and_batch() {
    let gpu = gpu();
    let (m, n, k, batch, pad) = (3, 5, 4, 2, 3);
    let f = |x: f32| bf16::from_f32(x);
    for (turn_a, turn_b, biased) in
        [(false, false, true), (true, false, false), (false, true, true), (true, true, false)]
    {
        let operand = |x: &Slice<bf16>, rows: usize, columns: usize, transposed: bool| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            let (stride, batch_stride) = (columns + pad, rows * (columns + pad));
            Operand { address: x.address(), dtype: Dtype::Bf16, stride, transposed, batch_stride }
        };
        let longest = batch * 8 * 8;
        let values = integers(longest);
        let narrow: Vec<bf16> = values.iter().copied().map(f).collect();
        let (a_data, b_data) = (gpu.tensor(&narrow).unwrap(), gpu.tensor(&narrow).unwrap());
        let c = gpu.tensor(&vec![100.0f32; batch * m * n]).unwrap();
        let bias = gpu.tensor(&integers(n)).unwrap();
        let (a, b) = (operand(&a_data, m, k, turn_a), operand(&b_data, k, n, turn_b));
        let out =
            Operand { address: c.address(), dtype: Dtype::F32, stride: n, transposed: false, batch_stride: m * n };
        let bias_address = biased.then(|| bias.address());
        gpu.matmul(&Matmul { m, n, k, batch, alpha: 2.0, beta: 0.5, a, b, c: out, bias: bias_address }).unwrap();
        let at = |of: Operand, g: usize, i: usize, j: usize| {
            let (i, j) = if of.transposed { (j, i) } else { (i, j) };
            values[g * of.batch_stride + i * of.stride + j]
        };
        let mut want = Vec::new();
        for (g, i, j) in (0..batch).flat_map(|g| (0..m).flat_map(move |i| (0..n).map(move |j| (g, i, j)))) {
            let sum: f32 = (0..k).map(|l| at(a, g, i, l) * at(b, g, l, j)).sum();
            want.push(2.0 * sum + 50.0 + if biased { integers(n)[j] } else { 0.0 });
        }
        assert_eq!(gpu.read(&c).unwrap(), want, "{turn_a} {turn_b}");
    }
}

#[test]
fn the_arena_reuses_and_joins() {
    let mut arena = Arena::new(1100);
    assert_eq!(arena.total(), 1024);
    let [a, b, c] = [200, 256, 1].map(|bytes| arena.alloc(bytes).unwrap());
    assert_eq!(([a, b, c], arena.free_bytes()), ([0, 256, 512], 256));
    arena.free(a);
    arena.free(c);
    // The gap at the end has joined what c left; the one at the start is apart.
    let refused = arena.alloc(513).unwrap_err();
    assert_eq!(refused, Error::OutOfMemory { asked: 513, free: 768, largest: 512, total: 1024 });
    let text = refused.to_string();
    assert!(text.contains("513") && text.contains("768 of 1024") && text.contains("grpo.micro_tokens"), "{text}");
    assert_eq!(arena.alloc(512).unwrap(), 512);
    assert_eq!(arena.alloc(0).unwrap(), 0);
    arena.free(b);
    arena.free(b);
    assert_eq!(arena.free_bytes(), 256, "freed once");
    arena.free(0);
    arena.free(512);
    assert_eq!(arena.alloc(1024).unwrap(), 0, "all joined again");
    assert!(arena.alloc(usize::MAX).is_err());
}

/// Where there is a GPU, it opens; where there is none, one clear line says so.
#[test]
fn a_machine_without_a_gpu_is_told_politely() {
    match cuda::describe() {
        Ok(found) => assert!(found.contains("GiB"), "{found}"),
        Err(e) => {
            assert!(matches!(e, Error::NoDriver | Error::DriverTooOld { .. } | Error::NoGpu), "{e:?}");
            assert!(cuda::Cuda::open(None).is_err());
            assert!(!e.to_string().contains('\n') && e.to_string().contains(':'), "{e}");
        }
    }
    assert!(Error::DriverTooOld { found: 12040 }.to_string().contains("CUDA 12.4"));
}

#[test]
fn the_selftest_refuses_without_a_gpu() {
    let selftest = |device: &str| {
        let command = ["selftest", "--device", device];
        std::process::Command::new(env!("CARGO_BIN_EXE_uncouple")).args(command).output().unwrap()
    };
    for (device, there) in [("cpu", false), ("cuda", cuda::Cuda::open(Some(1 << 20)).is_ok())] {
        let output = selftest(device);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), there, "{said}");
        assert!(there || said.trim().lines().count() == 1 && said.contains("--device"), "{said}");
    }
}
