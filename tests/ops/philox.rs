//! Philox 4x32-10 against the published known answers, and the distributions built on it.

use uncouple::ops::philox::{block, normals, philox4x32, uniform};

#[test]
fn known_answers() {
    let ones = u32::MAX;
    for (counter, key, want) in [
        ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
        ([ones; 4], [ones; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
        (
            [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
            [0xa4093822, 0x299f31d0],
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
        ),
    ] {
        assert_eq!(philox4x32(counter, key), want);
    }
}

#[test]
fn uniform_stays_inside_the_open_interval() {
    assert!(uniform(0) > 0.0);
    assert!(uniform(u32::MAX) < 1.0);
}

#[test]
fn normals_have_the_moments_of_a_normal() {
    let draws: Vec<f64> = (0..50_000).flat_map(|i| normals(block(7, 3, i))).map(f64::from).collect();
    let n = draws.len() as f64;
    let moment = |k: i32| draws.iter().map(|x| x.powi(k)).sum::<f64>() / n;
    assert!(moment(1).abs() < 0.01, "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < 0.02, "variance {}", moment(2));
    assert!((moment(4) - 3.0).abs() < 0.1, "fourth moment {}", moment(4));
}

#[test]
fn seed_stream_and_index_all_matter() {
    let blocks = [block(1, 2, 3), block(2, 2, 3), block(1, 3, 3), block(1, 2, 4), block(1 << 32, 2, 3)];
    for (i, a) in blocks.iter().enumerate() {
        assert!(blocks[i + 1..].iter().all(|b| a != b));
    }
}

#[test]
fn no_two_uses_draw_the_same_numbers() {
    use uncouple::ops::philox::Stream;
    let counted =
        [Stream::Rollout, Stream::Judgments, Stream::Resampling, Stream::Sentences, Stream::ColdStart, Stream::Theory];
    let single = [
        Stream::Evaluation,
        Stream::EvaluationJudgments,
        Stream::Consistency,
        Stream::NoiseActions,
        Stream::OffPlan,
        Stream::MadeUpSuggestions,
        Stream::Permutations,
    ];
    // From the first to more than a configuration may ask for.
    let counts = || (0..2000).chain([999_999, 1_000_000, 100_000_000]);
    let all = counted.iter().flat_map(|of| counts().map(of)).chain(single);
    let numbers: Vec<u32> = all.map(Stream::number).collect();
    let distinct: std::collections::HashSet<u32> = numbers.iter().copied().collect();
    assert_eq!(numbers.len(), distinct.len());
    // Parts of one are not parts of another.
    assert_ne!(Stream::Evaluation.part(1), Stream::Evaluation.part(2));
    assert_eq!(Stream::NoiseActions.part(u64::MAX) >> 32, u64::from(Stream::NoiseActions.number()));
}
