use crate::*;
use kernel_emulator::{Arg, args, launch};
use uncouple::ops::advantage::{Scale, advantages};

const EPS: f32 = 1e-4;

#[test]
fn groups_of_all_sizes_and_kinds() {
    // One, two, constant, more than a warp, empty, and a constant whose mean is off in the last bit.
    let sizes = [1, 2, 8, 8, 40, 0, 7, 100];
    let n: usize = sizes.iter().sum();
    let mut rewards = randoms(9, n);
    rewards[3..11].fill(1.0);
    rewards[59..66].fill(0.1);
    let start: Vec<u32> = (0..=sizes.len()).map(|g| sizes[..g].iter().sum::<usize>() as u32).collect();
    let wide: Vec<f64> = rewards.iter().map(|&r| f64::from(r)).collect();
    let (reward, start, std) = (Buffer::new(&rewards), Buffer::new(&start), Buffer::poisoned::<f32>(1));
    launch("advantage_batch_std_f32", 1, 128, 0, args![&reward, &std, n as i32]).unwrap();
    for scale in [Scale::Group, Scale::Batch, Scale::None] {
        let want: Vec<f32> = advantages(&wide, &sizes, scale, f64::from(EPS)).into_iter().map(|a| a as f32).collect();
        let advantage = Buffer::poisoned::<f32>(n);
        let std = if scale == Scale::Batch { Arg::Buffer(&std) } else { Arg::Null };
        let centre_only = i32::from(scale == Scale::None);
        let args = [
            Arg::Buffer(&reward),
            Arg::Buffer(&start),
            std,
            Arg::Buffer(&advantage),
            Arg::from(sizes.len() as i32),
            Arg::from(centre_only),
            Arg::from(EPS),
        ];
        launch("advantage_group_f32", 3, 96, 0, &args).unwrap();
        let got = advantage.read::<f32>().unwrap();
        assert_close(&format!("{scale:?}"), &got, &want, F32);
        assert!(got[0] == 0.0 && got[3..11].iter().chain(&got[59..66]).all(|&a| a == 0.0), "exactly 0");
    }
}

#[test]
fn fewer_than_two_rewards_have_no_deviation() {
    let std = Buffer::poisoned::<f32>(1);
    launch("advantage_batch_std_f32", 1, 32, 0, args![&Buffer::new(&[3.0f32]), &std, 1]).unwrap();
    assert_eq!(std.read::<f32>().unwrap(), [0.0]);
}
