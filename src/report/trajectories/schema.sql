create table meta (key text primary key, value text not null) without rowid;

create table episodes (
    id integer primary key,
    iteration integer not null,
    phase text not null,
    split text not null,
    task text not null,
    kind text not null,
    group_id integer not null,
    sample integer not null,
    reward real not null,
    success integer not null,
    finish text not null,
    steps integer not null,
    repeats integer not null,
    loops integer not null,
    seconds real not null,
    suggestions text not null,
    tokens text not null);

create table turns (
    episode integer not null references episodes(id) on delete cascade,
    turn integer not null,
    observation text not null,
    action text not null,
    command text,
    valid integer not null,
    prompt_start integer not null,
    action_start integer not null,
    action_end integer not null,
    logprob_sum real,
    q real,
    label text,
    flaw text,
    reward real not null,
    advantage real,
    primary key (episode, turn)) without rowid;

create table judgments (
    episode integer not null references episodes(id) on delete cascade,
    turn integer not null,
    sample integer not null,
    label text not null,
    verdict text,
    text text not null,
    primary key (episode, turn, sample)) without rowid;

create table suggestions (
    made integer not null,
    place integer not null,
    text text not null,
    primary key (made, place)) without rowid;

create table evidence (
    made integer not null,
    place integer not null,
    item integer not null,
    task text not null,
    observation text not null,
    action text not null,
    flaw text not null,
    count integer not null,
    sampled real not null,
    resampled real not null,
    advantage real not null,
    primary key (made, place, item),
    foreign key (made, place) references suggestions on delete cascade) without rowid;

create index episodes_by_iteration on episodes(iteration);
create index episodes_by_phase on episodes(phase, iteration, group_id, sample);
