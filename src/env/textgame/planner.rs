//! Shortest plans: A* on the game's own states with the landmark-cut bound (Helmert and Domshlak 2009), which is
//! admissible, so the plans are shortest among those made of actions that bear on the goal.
//!
//! An action bears on the goal when it brings about the goal or something such an action needs. What only has to be
//! *un*done (the hands must be empty) is not pursued further: undoing counts only if it can be done with what holds now
//! or bears on the goal anyway. So nobody picks up things that do not matter only to put them down again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use foldhash::HashMap;

use super::facts::FactId;
use super::game::{Game, GameState};
use super::ground::{GroundTask, Test};
use super::limits::MOST_PLANNING;

/// States looked at before the search gives up, and the bytes that they may take.
const MOST_STATES: usize = 200_000;
const MOST_STATE_BYTES: usize = 512 << 20;

/// The distance and the next action of a shortest plan; `None`: no way, or given up.
type Known = Option<(u32, Option<u32>)>;

/// Finds plans and remembers them: after one search every state on the found plan is known.
#[derive(Debug, Default)]
pub struct Planner {
    /// By the changing facts that hold.
    known: HashMap<Box<[u64]>, Known>,
}

impl Planner {
    /// Fewest steps to the goal (`None`: it cannot be reached, or the search gave up).
    pub fn distance(&mut self, game: &Game, state: &GameState) -> Option<u32> {
        self.look_up(game, state).map(|(distance, _)| distance)
    }

    /// The next ground action of a shortest plan.
    pub fn next(&mut self, game: &Game, state: &GameState) -> Option<u32> {
        self.look_up(game, state).and_then(|(_, action)| action)
    }

    fn look_up(&mut self, game: &Game, state: &GameState) -> Known {
        if let Some(known) = self.known.get(state.bits()) {
            return *known;
        }
        match shortest_plan(game, state) {
            None => {
                self.known.insert(state.bits().into(), None);
            }
            Some(plan) => {
                let mut now = state.clone();
                for (i, action) in plan.iter().enumerate() {
                    self.known.insert(now.bits().into(), Some(((plan.len() - i) as u32, Some(*action))));
                    game.apply(&mut now, *action);
                }
                self.known.insert(now.bits().into(), Some((0, None)));
            }
        }
        self.known.get(state.bits()).copied().flatten()
    }
}

/// A state that the search has reached, and how.
struct SearchNode {
    state: GameState,
    cost: u32,
    parent: usize,
    action: u32,
    closed: bool,
}

/// Nodes to look at: lowest estimate first, then the deepest, then the latest.
type Open = BinaryHeap<(Reverse<u32>, u32, usize)>;

/// What A* has reached so far.
struct Reached {
    nodes: Vec<SearchNode>,
    /// Nodes by their state.
    seen: HashMap<Box<[u64]>, usize>,
    open: Open,
}

impl Reached {
    fn new(start: &GameState) -> Reached {
        let root = SearchNode { state: start.clone(), cost: 0, parent: 0, action: 0, closed: false };
        let seen = HashMap::from_iter([(start.bits().into(), 0)]);
        Reached { nodes: vec![root], seen, open: Open::from([(Reverse(0u32), 0u32, 0usize)]) }
    }

    /// The actions that lead to a node.
    fn plan(&self, mut at: usize) -> Vec<u32> {
        let mut plan = Vec::new();
        while at != 0 {
            plan.push(self.nodes[at].action);
            at = self.nodes[at].parent;
        }
        plan.reverse();
        plan
    }

    /// Takes an action in node `id`, whose estimate is passed on.
    fn take(&mut self, game: &Game, id: usize, action: u32, estimate: u32) {
        let (mut state, cost) = (self.nodes[id].state.clone(), self.nodes[id].cost + 1);
        game.apply(&mut state, action);
        let reached = self.nodes.len();
        let target = *self.seen.entry(state.bits().into()).or_insert(reached);
        if target == reached {
            self.nodes.push(SearchNode { state, cost, parent: id, action, closed: false });
        } else if self.nodes[target].cost > cost {
            let node = &mut self.nodes[target];
            (node.cost, node.parent, node.action, node.closed) = (cost, id, action, false);
        } else {
            return;
        }
        self.open.push((Reverse(estimate), cost, target));
    }
}

/// A shortest plan from `start`, as ground actions: A* with the landmark-cut bound.
pub fn shortest_plan(game: &Game, start: &GameState) -> Option<Vec<u32>> {
    let relevant = relevant_operators(game, start);
    let mut bound = Bound::new(game, &relevant);
    let mut useful = vec![false; game.task.actions.len()];
    relevant.iter().for_each(|w| useful[game.task.operators[*w as usize].action as usize] = true);
    // A state is two bit sets, and the first of them once more as the key by which it is found.
    let most_states = MOST_STATES.min(MOST_STATE_BYTES / (3 * size_of_val(start.bits())).max(1));
    let mut reached = Reached::new(start);
    while let Some((Reverse(estimate), cost, id)) = reached.open.pop() {
        if bound.work > MOST_PLANNING {
            return None;
        }
        let node = &mut reached.nodes[id];
        if node.closed || node.cost < cost {
            continue;
        }
        if game.won(&node.state) {
            return Some(reached.plan(id));
        }
        // A node's bound is computed when it is taken, not when it is made.
        let left = bound.of(&node.state);
        node.closed = left.is_none_or(|left| node.cost + left <= estimate);
        let Some(left) = left else { continue };
        if !node.closed {
            reached.open.push((Reverse(node.cost + left), node.cost, id));
            continue;
        }
        let mut next = Vec::new();
        game.possible(&node.state, |action| {
            if useful[action as usize] {
                next.push(action);
            }
        });
        for action in next {
            if reached.nodes.len() > most_states {
                return None;
            }
            reached.take(game, id, action, estimate);
        }
    }
    None
}

/// Facts that a test wants true (`positive`) or false.
fn wanted_by(test: &Test, truth: bool, visit: &mut impl FnMut(FactId, bool)) {
    match test {
        Test::Is(_) => {}
        Test::Fact(fact) => visit(*fact, truth),
        Test::Not(inner) => wanted_by(inner, !truth, visit),
        Test::All(parts) | Test::Any(parts) => parts.iter().for_each(|p| wanted_by(p, truth, visit)),
    }
}

/// Ways by the facts that they make false, and true; of the facts, those that can change.
fn makers(task: &GroundTask) -> [Vec<Vec<u32>>; 2] {
    let changing = task.facts.count() - task.fixed as usize;
    let index = |fact: FactId| (fact - task.fixed) as usize;
    let mut makers = [vec![Vec::new(); changing], vec![Vec::new(); changing]];
    for (w, operator) in task.operators.iter().enumerate() {
        let action = &task.actions[operator.action as usize];
        action.adds.iter().for_each(|f| makers[1][index(*f)].push(w as u32));
        action.deletes.iter().for_each(|f| makers[0][index(*f)].push(w as u32));
        action.conditional.iter().for_each(|(_, f, value)| makers[usize::from(*value)][index(*f)].push(w as u32));
    }
    makers
}

/// The operators (see [`super::ground::Operator`]) that bear on the goal from `start`.
fn relevant_operators(game: &Game, start: &GameState) -> Vec<u32> {
    let task = &game.task;
    let changing = task.facts.count() - task.fixed as usize;
    let index = |fact: FactId| (fact - task.fixed) as usize;
    let makers = makers(task);
    let mut want = [vec![false; changing], vec![false; changing]];
    let mut queue: Vec<(FactId, bool)> = Vec::new();
    let mut taken = vec![false; task.operators.len()];
    let mut out = Vec::new();
    let mut need = |when: &super::ground::Conjunction, queue: &mut Vec<(FactId, bool)>| {
        let mut ask = |fact: FactId, truth: bool| {
            if !std::mem::replace(&mut want[usize::from(truth)][index(fact)], true) {
                queue.push((fact, truth));
            }
        };
        when.positive.iter().for_each(|f| ask(*f, true));
        when.negative.iter().for_each(|f| ask(*f, false));
        if let Some(test) = &when.rest {
            wanted_by(test, true, &mut ask);
        }
    };
    task.goal.iter().for_each(|g| need(g, &mut queue));
    // First everything that has to be made true, and what that needs; then, once, what undoes.
    let mut undo = Vec::new();
    while let Some((fact, truth)) = queue.pop() {
        if !truth {
            undo.push(fact);
            continue;
        }
        for operator in &makers[1][index(fact)] {
            if !std::mem::replace(&mut taken[*operator as usize], true) {
                out.push(*operator);
                let operator = &task.operators[*operator as usize];
                need(&operator.when, &mut queue);
                for (test, f, value) in &task.actions[operator.action as usize].conditional {
                    if *value && *f == fact {
                        let rest = Some(Box::new(test.clone()));
                        need(&super::ground::Conjunction { rest, ..Default::default() }, &mut queue);
                    }
                }
            }
        }
    }
    let positive: Vec<bool> = want[1].clone();
    let at_hand = |f: &FactId| positive[index(*f)] || start.holds(*f);
    let possible = |operator: u32| task.operators[operator as usize].when.positive.iter().all(at_hand);
    let undoing = undo.iter().flat_map(|fact| &makers[0][index(*fact)]).copied();
    out.extend(
        undoing.filter(|operator| possible(*operator) && !std::mem::replace(&mut taken[*operator as usize], true)),
    );
    out
}

/// The landmark-cut bound on a task without deletions: facts that must be false get a fact of their own that says so.
struct Bound {
    changing: usize,
    fixed: FactId,
    /// Facts: the changing ones, their opposites, one that always holds, and last the goal.
    facts: usize,
    needs: Vec<Vec<u32>>,
    makes: Vec<Vec<u32>>,
    price: Vec<u8>,
    needed_by: Vec<Vec<u32>>,
    made_by: Vec<Vec<u32>>,
    scratch: Scratch,
    /// Facts and operations looked at so far.
    work: u64,
}

#[derive(Default)]
struct Scratch {
    cost: Vec<u8>,
    level: Vec<u32>,
    left: Vec<u32>,
    supporter: Vec<u32>,
    buckets: Vec<Vec<u32>>,
    zone: Vec<u8>,
}

const FAR: u32 = u32::MAX;

impl Bound {
    fn new(game: &Game, operators: &[u32]) -> Self {
        let task = &game.task;
        let changing = task.facts.count() - task.fixed as usize;
        let (always, goal, facts) = (2 * changing as u32, 2 * changing as u32 + 1, 2 * changing + 2);
        let yes = |f: &FactId| f - task.fixed;
        let no = |f: &FactId| f - task.fixed + changing as u32;
        let needs_of = |when: &super::ground::Conjunction| {
            let mut needs: Vec<u32> = when.positive.iter().map(yes).chain(when.negative.iter().map(no)).collect();
            if needs.is_empty() {
                needs.push(always);
            }
            needs
        };
        let (mut needs, mut makes, mut price) = (Vec::new(), Vec::new(), Vec::new());
        for operator in operators {
            let operator = &task.operators[*operator as usize];
            let action = &task.actions[operator.action as usize];
            let mut made: Vec<u32> = action.adds.iter().map(yes).chain(action.deletes.iter().map(no)).collect();
            made.extend(action.conditional.iter().map(|(_, f, value)| if *value { yes(f) } else { no(f) }));
            needs.push(needs_of(&operator.when));
            makes.push(made);
            price.push(1);
        }
        for conjunction in &task.goal {
            needs.push(needs_of(conjunction));
            makes.push(vec![goal]);
            price.push(0);
        }
        // What nobody needs need not be made.
        let mut needed_by = vec![Vec::new(); facts];
        let mut made_by = vec![Vec::new(); facts];
        for (op, list) in needs.iter().enumerate() {
            list.iter().for_each(|f| needed_by[*f as usize].push(op as u32));
        }
        for (op, list) in makes.iter_mut().enumerate() {
            list.retain(|f| *f == goal || !needed_by[*f as usize].is_empty());
            list.iter().for_each(|f| made_by[*f as usize].push(op as u32));
        }
        let scratch = Scratch::default();
        Self { changing, fixed: task.fixed, facts, needs, makes, price, needed_by, made_by, scratch, work: 0 }
    }

    /// A lower bound on the steps from `state` to the goal; `None`: the goal cannot be reached.
    fn of(&mut self, state: &GameState) -> Option<u32> {
        let goal = self.facts - 1;
        self.scratch.cost.clone_from(&self.price);
        let mut holding: Vec<u32> = vec![2 * self.changing as u32];
        for fact in 0..self.changing as u32 {
            holding.push(if state.holds(self.fixed + fact) { fact } else { fact + self.changing as u32 });
        }
        let mut total = 0;
        loop {
            self.levels(&holding);
            if self.work > MOST_PLANNING {
                return None;
            }
            match self.scratch.level[goal] {
                FAR => return None,
                0 => return Some(total),
                _ => {}
            }
            self.cut(&holding);
            total += 1;
        }
    }

    /// For every fact the dearest chain of needs (h-max), and for every operation the need that is met last.
    fn levels(&mut self, holding: &[u32]) {
        let Self { scratch: s, needs, makes, needed_by, work, .. } = self;
        *work += (self.facts + needs.len()) as u64;
        s.level.clear();
        s.level.resize(self.facts, FAR);
        s.left.clear();
        s.left.extend(needs.iter().map(|n| n.len() as u32));
        s.supporter.clear();
        s.supporter.resize(needs.len(), FAR);
        s.buckets.iter_mut().for_each(Vec::clear);
        if s.buckets.is_empty() {
            s.buckets.push(Vec::new());
        }
        for fact in holding {
            s.level[*fact as usize] = 0;
            s.buckets[0].push(*fact);
        }
        let mut at = 0;
        while at < s.buckets.len() {
            while let Some(fact) = s.buckets[at].pop() {
                if s.level[fact as usize] != at as u32 {
                    continue;
                }
                *work += needed_by[fact as usize].len() as u64;
                for op in &needed_by[fact as usize] {
                    let op = *op as usize;
                    s.left[op] -= 1;
                    if s.left[op] > 0 {
                        continue;
                    }
                    s.supporter[op] = fact;
                    *work += makes[op].len() as u64;
                    let reached = at as u32 + u32::from(s.cost[op]);
                    for made in &makes[op] {
                        if s.level[*made as usize] > reached {
                            s.level[*made as usize] = reached;
                            if s.buckets.len() <= reached as usize {
                                s.buckets.resize(reached as usize + 1, Vec::new());
                            }
                            s.buckets[reached as usize].push(*made);
                        }
                    }
                }
            }
            at += 1;
        }
    }

    /// Makes free the operations that lead into the zone from which the goal costs nothing more.
    fn cut(&mut self, holding: &[u32]) {
        let Self { scratch: s, makes, needed_by, made_by, .. } = self;
        const GOAL: u8 = 1;
        const START: u8 = 2;
        s.zone.clear();
        s.zone.resize(self.facts, 0);
        let goal = self.facts as u32 - 1;
        s.zone[goal as usize] = GOAL;
        let mut stack = vec![goal];
        while let Some(fact) = stack.pop() {
            for op in &made_by[fact as usize] {
                let supporter = s.supporter[*op as usize];
                if supporter != FAR && s.cost[*op as usize] == 0 && s.zone[supporter as usize] == 0 {
                    s.zone[supporter as usize] = GOAL;
                    stack.push(supporter);
                }
            }
        }
        let mut free = Vec::new();
        for fact in holding {
            if s.zone[*fact as usize] == 0 {
                s.zone[*fact as usize] = START;
                stack.push(*fact);
            }
        }
        while let Some(fact) = stack.pop() {
            for op in &needed_by[fact as usize] {
                if s.supporter[*op as usize] != fact {
                    continue;
                }
                let made = &makes[*op as usize];
                if made.iter().any(|f| s.zone[*f as usize] == GOAL) {
                    free.push(*op);
                    continue;
                }
                for f in made {
                    if s.zone[*f as usize] == 0 {
                        s.zone[*f as usize] = START;
                        stack.push(*f);
                    }
                }
            }
        }
        free.iter().for_each(|op| s.cost[*op as usize] = 0);
    }
}
