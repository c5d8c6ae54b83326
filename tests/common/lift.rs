//! A game in which a lift takes riders to the ground floor.

/// A lift that exercises what the household rules do not: `or`, `imply`, `forall`, `when`, constants and subtypes.
pub const DOMAIN: &str = "(define (domain lift)
 (:types floor rider - object vip - rider)
 (:constants ground - floor)
 (:predicates (lift ?f - floor) (next ?a ?b - floor) (waits ?r - rider ?f - floor) (inside ?r - rider)
   (served ?r - rider) (warm ?r - rider) (locked) (rung))
 (:action ride :parameters (?f - floor ?g - floor)
  :precondition (and (lift ?f) (or (next ?f ?g) (next ?g ?f)) (imply (locked) (= ?g ground)))
  :effect (and (not (lift ?f)) (lift ?g) (increase (total-cost) 1)))
 (:action doors :parameters ()
  :precondition (exists (?r - rider ?f - floor) (and (lift ?f) (or (inside ?r) (waits ?r ?f))))
  :effect (forall (?r - rider ?f - floor) (and
    (when (and (lift ?f) (waits ?r ?f)) (and (not (waits ?r ?f)) (inside ?r)))
    (when (and (lift ?f) (inside ?r) (= ?f ground)) (and (not (inside ?r)) (served ?r))))))
 (:action greet :parameters (?v - vip) :precondition (inside ?v) :effect (warm ?v))
 (:action ring :parameters () :precondition (forall (?r - rider) (served ?r)) :effect (rung)))";

pub const GRAMMAR: &str = r##"
grammar :: """{ "intro": [{"rhs": "a lift."}], "who": [
  {"condition": "inside(r:rider)", "rhs": "inside: [{r.indefinite + ' ' + r.name | inside(r:rider)}]."},
  {"rhs": "inside: [{r.name | inside(r:rider)}]."}],
  "list_empty": [{"rhs": "nobody"}], "list_separator": [{"rhs": ", "}], "list_last_separator": [{"rhs": ", and "}] }""";
action ride { template :: "ride to {g}"; feedback :: "#who#"; }
action doors { template :: "doors"; feedback :: "#who#"; }
action greet { template :: "greet {v}"; feedback :: "hello, {v.name or v.id}."; }
action ring { template :: "ring"; feedback :: "done."; }
"##;

pub const PROBLEM: &str = "(define (problem p) (:domain lift)
 (:objects f_bar_1 f_bar_2 - floor ann_bar_1 - rider bob_bar_1 - vip)
 (:init (lift ground) (next ground f_bar_2) (next f_bar_2 f_bar_1)
        (waits ann_bar_1 f_bar_2) (waits bob_bar_1 f_bar_1))
 (:goal (and (rung) (forall (?v - vip) (warm ?v)))))";
