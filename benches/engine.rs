//! Steps per second of the text-game engine, the admissible commands included, on one core.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use uncouple::env::household::Household;
use uncouple::env::textgame::{GameFile, Shared, TextGame};
use uncouple::env::{Environment, Split, Suite};

/// 1000 steps over `games` in turn, each choosing among the admissible commands by a counter; a win starts again.
fn walk(games: &mut [Box<dyn Environment>], oracle: bool) {
    let mut admissible: Vec<Vec<String>> = games.iter_mut().map(|g| g.reset().unwrap().admissible).collect();
    for i in 0..1000 {
        let at = i % games.len();
        let command = admissible[at][(i * 7919 + i / 3) % admissible[at].len()].clone();
        let mut seen = games[at].step(&command).unwrap();
        if oracle {
            std::hint::black_box(games[at].distance());
        }
        if seen.done {
            seen = games[at].reset().unwrap();
        }
        admissible[at] = seen.admissible;
    }
}

fn engine(c: &mut Criterion) {
    let suite = Household::new(0);
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(1000));
    let mut games: Vec<_> = (0..16).map(|i| suite.open(&suite.task(Split::L0, i).unwrap()).unwrap()).collect();
    group.bench_function("household step with admissible list", |b| b.iter(|| walk(&mut games, false)));
    group.bench_function("household step, admissible list and remembered distance", |b| {
        b.iter(|| walk(&mut games, true))
    });

    let shared =
        std::env::var("UNCOUPLE_SHARED").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into());
    if let Ok(types) = std::fs::read_dir(format!("{shared}/alfworld/games/train")) {
        let mut games: Vec<Box<dyn Environment>> = Vec::new();
        let mut file = None;
        for trial in types.flatten().flat_map(|t| std::fs::read_dir(t.path()).into_iter().flatten().flatten()) {
            let read = GameFile::read(&trial.path().join("game.tw-pddl")).unwrap();
            games.push(Box::new(TextGame::new("alfworld", read.compile(&mut Shared::default()).unwrap().into())));
            file = Some(read);
        }
        group.bench_function("alfworld step with admissible list", |b| b.iter(|| walk(&mut games, false)));
        group.sample_size(10);
        group.bench_function("alfworld step, admissible list and remembered distance", |b| {
            b.iter(|| walk(&mut games, true))
        });
        group.throughput(Throughput::Elements(1));
        let mut shared = Shared::default();
        let file = file.unwrap();
        group.bench_function("alfworld load and reset", |b| {
            b.iter(|| TextGame::new("alfworld", file.compile(&mut shared).unwrap().into()).reset().unwrap())
        });
    }
    group.throughput(Throughput::Elements(1));
    let mut index = 0;
    group.bench_function("household open", |b| {
        b.iter(|| {
            index += 1;
            suite.open(&suite.task(Split::Train, index).unwrap()).unwrap()
        })
    });
}

criterion_group!(benches, engine);
criterion_main!(benches);
