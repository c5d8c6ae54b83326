;; One room, one pair of hands. A place is where one can stand and also what one stands at.
(define (domain household)
 (:requirements :adl :typing)
 (:types place thing sort kind)
 (:predicates
   (at ?p - place)
   (sort ?p - place ?s - sort)      ; what a place is: a drawer, a sink
   (openable ?p - place)
   (open ?p - place)
   (stores ?p - place)              ; things can be left here
   (in ?t - thing ?p - place)
   (kind ?t - thing ?k - kind)      ; what a thing is: a mug, a lamp
   (portable ?t - thing)
   (washable ?t - thing)
   (heatable ?t - thing)
   (coolable ?t - thing)
   (lightable ?t - thing)
   (holding ?t - thing)
   (busy)                           ; the hands hold something
   (clean ?t - thing)
   (hot ?t - thing)
   (cool ?t - thing)
   (lit ?t - thing)
   (looked))

 (:action go
   :parameters (?p - place)
   :precondition (not (at ?p))
   :effect (and (forall (?q - place) (not (at ?q))) (at ?p)))

 (:action open
   :parameters (?p - place)
   :precondition (and (at ?p) (openable ?p) (not (open ?p)))
   :effect (open ?p))

 (:action take
   :parameters (?t - thing ?p - place)
   :precondition (and (at ?p) (in ?t ?p) (portable ?t) (or (not (openable ?p)) (open ?p)) (not (busy)))
   :effect (and (not (in ?t ?p)) (holding ?t) (busy)))

 (:action put
   :parameters (?t - thing ?p - place)
   :precondition (and (at ?p) (holding ?t) (stores ?p) (or (not (openable ?p)) (open ?p)))
   :effect (and (in ?t ?p) (not (holding ?t)) (not (busy))))

 (:action wash
   :parameters (?t - thing)
   :precondition (and (holding ?t) (washable ?t) (exists (?p - place) (and (at ?p) (sort ?p sink))))
   :effect (clean ?t))

 (:action heat
   :parameters (?t - thing)
   :precondition (and (holding ?t) (heatable ?t) (exists (?p - place) (and (at ?p) (sort ?p stove))))
   :effect (and (hot ?t) (not (cool ?t))))

 (:action cool
   :parameters (?t - thing)
   :precondition (and (holding ?t) (coolable ?t) (exists (?p - place) (and (at ?p) (sort ?p fridge))))
   :effect (and (cool ?t) (not (hot ?t))))

 (:action light
   :parameters (?t - thing ?p - place)
   :precondition (and (at ?p) (in ?t ?p) (lightable ?t) (not (lit ?t)))
   :effect (lit ?t))

 (:action look
   :parameters ()
   :precondition ()
   :effect (looked))

 (:action hands
   :parameters ()
   :precondition ()
   :effect (looked)))
