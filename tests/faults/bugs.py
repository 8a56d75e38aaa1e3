"""Planted bugs: small wrong edits that a tired programmer could make, each of which the simulation must catch.

    pytest -s tests/faults -k NAME      which world catches it, and by which law

A law that catches none of them may be worth nothing; a bug that no law catches is one that we could ship.
"""

# ruff: noqa: E501 - what is replaced stands as it is written in its file

from dataclasses import dataclass

__all__ = ["BUGS", "Bug"]

_CORE = "protos/koinon_core"
_COORDINATOR = "coordinator/koinon_coordinator"
_CLIENT = "client/koinon"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bug:
    """`old`, which is in `file` exactly once, becomes `new`. `breaks` is the promise that is broken, `seed` the first
    world that shows it."""

    name: str
    breaks: str
    file: str
    old: str
    new: str
    seed: int = 0


BUGS = (
    # -- what is said is durable ------------------------------------------------------------------------------
    Bug(
        name="staged-before-the-turn",
        breaks="STAGED is said only of what is stored",
        file=f"{_COORDINATOR}/devices.py",
        old="        driver.tell(item)\n        return None\n",
        new='        driver.tell(item)\n        return "STAGED", ""\n',
    ),
    Bug(
        name="said-though-not-stored",
        breaks="nothing is said of a turn that was not committed",
        file=f"{_COORDINATOR}/ledger.py",
        old="            except RefusedWrite:\n                self.sound = True\n                raise\n",
        new='            except StoreError as error:\n                self._log.error("not stored", reason=str(error))\n',
        seed=3,
    ),
    Bug(
        name="events-alone-are-written-later",
        breaks="an event is stored before its effect",
        file=f"{_COORDINATOR}/store/changes.py",
        old="return not (self.events or self.incidents or self.entries or moved)",
        new="return not (self.incidents or self.entries or moved)",
    ),
    Bug(
        name="participants-left-behind",
        breaks="who was counted is stored with the round's end",
        file=f"{_COORDINATOR}/store/changes.py",
        old="        if before is None or before.stage != r.stage:\n            rows.append(",
        new="        if before is None or before.stage != r.stage:\n            if before is not None and r.over:\n"
        "                before = r\n            rows.append(",
    ),
    # -- a round is one transaction from its end to the next one's opening -------------------------------------
    Bug(
        name="opened-in-another-transaction",
        breaks="a round's end and the next one's opening are one transaction",
        file=f"{_COORDINATOR}/ledger.py",
        old="                if isinstance(order, runs.Open):\n                    waiting.appendleft(self._opening())\n"
        "                else:\n",
        new="                if not isinstance(order, runs.Open):\n",
    ),
    Bug(
        name="model-row-forgotten",
        breaks="a round's model is stored with its end",
        file=f"{_COORDINATOR}/ledger.py",
        old="                change.models.append(version)\n                book.version",
        new="                book.version",
    ),
    Bug(
        name="next-round-on-the-model-before",
        breaks="a round stands on the newest model",
        file=f"{_CORE}/run/machine.py",
        old="run, model=fact.model, down=fact.down, weights=fact.weights, evaluators=",
        new="run, down=fact.down, weights=fact.weights, evaluators=",
    ),
    Bug(
        name="next-round-on-the-state-before",
        breaks="a round stands on the newest state",
        file=f"{_CORE}/run/machine.py",
        old="run, model=fact.model, down=fact.down, weights=fact.weights, evaluators=",
        new="run, model=fact.model, weights=fact.weights, evaluators=",
    ),
    Bug(
        name="one-round-too-many",
        breaks="a run makes as many models as it was asked for",
        file=f"{_CORE}/run/machine.py",
        old="if run.closed < run.spec.rounds and not stopped:",
        new="if run.closed <= run.spec.rounds and not stopped:",
    ),
    # -- the sum ----------------------------------------------------------------------------------------------
    Bug(
        name="folded-twice",
        breaks="each update is in the sum once",
        file=f"{_COORDINATOR}/closing.py",
        old="for u in sorted(staged, key=lambda u: u.client)",
        new="for u in sorted([*staged, staged[0]], key=lambda u: u.client)",
    ),
    Bug(
        name="mean-over-the-asked",
        breaks="the mean is over those in the sum",
        file=f"{_CORE}/fold.py",
        old="self._total = sum(s.weight for s in staged)\n",
        new="self._total = sum(s.weight for s in staged) + 1\n",
    ),
    Bug(
        name="state-begun-anew",
        breaks="the strategy's state goes from round to round",
        file=f"{_CORE}/strategy/closing.py",
        old="        before = state_tile(self._shape, self._state, name, offset)\n",
        new="        before = self._strategy.init(part('delta'), self._agg.population)\n",
    ),
    Bug(
        name="count-twice-weighted",
        breaks="the server's control variate is the mean of the devices'",
        file=f"{_CORE}/strategy/closing.py",
        old="self.count, self.weight = len(given), ",
        new="self.count, self.weight = len(given) * len(given), ",
    ),
    Bug(
        name="quorum-off-by-one",
        breaks="no sum is taken over fewer than the quorum",
        file=f"{_CORE}/round/state.py",
        old="return len(set(heard)) >= self.terms.quorum",
        new="return len(set(heard)) + 1 >= self.terms.quorum",
    ),
    Bug(
        name="leaves-though-heard",
        breaks="what was heard stays in the sum",
        file=f"{_CORE}/round/machine.py",
        old='if r.stage != "update" or event.client not in r.update.awaited:',
        new='if r.stage != "update" or event.client not in r.update.asked:',
        seed=3,
    ),
    Bug(
        name="late-moved-into-the-next",
        breaks="a late update is rejected, never moved",
        file=f"{_CORE}/run/machine.py",
        old="    if run.round is None or run.number != number:\n        return Moved(run, (), (Recall(client, number),))\n",
        new="    if run.round is None:\n        return Moved(run, (), (Recall(client, number),))\n",
        seed=18,
    ),
    # -- verdicts ---------------------------------------------------------------------------------------------
    Bug(
        name="late-recalled-as-counted",
        breaks="COUNTED is said only of what is in the sum",
        file=f"{_COORDINATOR}/store/queries.py",
        old='if row is not None and row[0] == "counted":',
        new='if row is not None and row[0] in ("counted", "late"):',
        seed=51,
    ),
    Bug(
        name="counted-recalled-as-lost",
        breaks="NOT_COUNTED is said only of what is not in the sum",
        file=f"{_COORDINATOR}/store/queries.py",
        old='if row is not None and row[0] == "counted":',
        new='if row is not None and row[0] == "staged":',
    ),
    Bug(
        name="abandoned-without-a-word",
        breaks="everyone in a round hears of its end",
        file=f"{_CORE}/round/ending.py",
        old='(Receipt(client, number, "NOT_COUNTED", why) for client in sorted(had))',
        new='(Receipt(client, number, "STAGED", why) for client in sorted(had))',
    ),
    Bug(
        name="receipts-lost-with-a-turn",
        breaks="whoever may have missed a receipt asks again",
        file=f"{_COORDINATOR}/driver.py",
        old="        self.cut_off()\n        self._send(said)\n",
        new="        self._send(said)\n",
        seed=9,
    ),
    # -- after a restart --------------------------------------------------------------------------------------
    Bug(
        name="staged-forgotten",
        breaks="an acknowledged update is in the sum",
        file=f"{_COORDINATOR}/book.py",
        old="    staged = {u.client: u for u in store.updates(row.id, row.number)} if open_ else {}\n",
        new="    staged: dict[str, UpdateRow] = {}\n",
        seed=6,
    ),
    Bug(
        name="an-older-state-after-a-restart",
        breaks="the run goes on from its newest model and state",
        file=f"{_COORDINATOR}/book.py",
        old="    version = store.latest_model(row.id)\n",
        new="    version = store.kept_versions(row.id)[0]\n",
    ),
    Bug(
        name="tried-again-from-memory",
        breaks="after a write of which nobody knows, the database is read",
        file=f"{_COORDINATOR}/driver.py",
        old="        self.ledger, said = await self._read_again()\n",
        new="        book = self.ledger._book\n        self.ledger, said = await self._read_again()\n"
        "        self.ledger._book = book\n",
        seed=3,
    ),
    Bug(
        name="deadline-runs-on-while-dead",
        breaks="a deadline counts owned time",
        file=f"{_CORE}/round/machine.py",
        old="deadline=waiting.deadline + away)",
        new="deadline=waiting.deadline)",
    ),
    Bug(
        name="deadline-moved-twice",
        breaks="a deadline counts owned time",
        file=f"{_CORE}/round/machine.py",
        old="deadline=waiting.deadline + away)",
        new="deadline=waiting.deadline + 2 * away)",
    ),
    Bug(
        name="no-beat",
        breaks="a successor knows until when the run was owned",
        file=f"{_COORDINATOR}/store/changes.py",
        old='    values: dict[str, Any] = {"beat": at} if owner is None else {"beat": at, "owner": owner}\n',
        new='    values: dict[str, Any] = {"epoch": epoch} if owner is None else {"beat": at, "owner": owner}\n',
        seed=15,
    ),
    Bug(
        name="leases-lapse-at-a-restart",
        breaks="everybody who is awaited gets a whole lease again",
        file=f"{_CORE}/run/machine.py",
        old="leases = dict.fromkeys(open_.awaited, fact.at + run.spec.lease) if open_ is not None else {}",
        new="leases = dict.fromkeys(open_.awaited, fact.at) if open_ is not None else {}",
        seed=13,
    ),
    Bug(
        name="no-leases-after-a-restart",
        breaks="whoever is gone is given up after its lease",
        file=f"{_CORE}/run/machine.py",
        old="leases = dict.fromkeys(open_.awaited, fact.at + run.spec.lease) if open_ is not None else {}",
        new="leases = dict(run.leases)",
        seed=15,
    ),
    Bug(
        name="taken-up-in-the-same-epoch",
        breaks="an owner has an epoch of its own",
        file=f"{_COORDINATOR}/store/owners.py",
        old="values(epoch=r.epoch + 1)",
        new="values(epoch=r.epoch)",
    ),
    Bug(
        name="no-fence",
        breaks="an owner that lost a run can write nothing of it",
        file=f"{_COORDINATOR}/store/changes.py",
        old='    mine = (run.id == bindparam("_run")) & (run.epoch == bindparam("_epoch"))\n',
        new='    mine = (run.id == bindparam("_run")) & (run.epoch >= bindparam("_epoch"))\n',
        seed=13,
    ),
    # -- time -------------------------------------------------------------------------------------------------
    Bug(
        name="a-due-tick-is-dropped",
        breaks="a round ends by its deadline",
        file=f"{_COORDINATOR}/driver.py",
        old="        if at is not None:\n            loop",
        new="        if at is not None and at > self._clock():\n            loop",
        seed=2,
    ),
    Bug(
        name="no-timer-for-leases",
        breaks="whoever is gone is given up after its lease",
        file=f"{_CORE}/run/machine.py",
        old="for t in (self.round.wakes_at, *self.leases.values())",
        new="for t in (self.round.wakes_at,)",
        seed=15,
    ),
    # -- the history and the log ------------------------------------------------------------------------------
    Bug(
        name="abandoned-not-in-the-log",
        breaks="the audit log has every round's end",
        file=f"{_COORDINATOR}/ledger.py",
        old='        self._enter(book, change, "ended", about)\n',
        new='        if close.counted:\n            self._enter(book, change, "ended", about)\n',
    ),
    Bug(
        name="abandoned-not-in-the-head",
        breaks="the head goes over every round",
        file=f"{_CORE}/run/machine.py",
        old="head=history.extend(run.head, link), links=newest)",
        new="head=history.extend(run.head, link) if closes[0].counted else run.head, links=newest)",
    ),
    Bug(
        name="links-from-the-next-round-on",
        breaks="a device can follow the history from what it saw",
        file=f"{_COORDINATOR}/store/queries.py",
        old='r.run == run, r.number >= since, r.link != ""',
        new='r.run == run, r.number > since, r.link != ""',
    ),
    # -- what is kept -----------------------------------------------------------------------------------------
    Bug(
        name="scrubbed-before-the-commit",
        breaks="what a round needs goes only after its end is stored",
        file=f"{_COORDINATOR}/store/face.py",
        old='        self.database.write("turn", partial(changes.write, change=change))\n        self._written(change)\n',
        new='        self._written(change)\n        self.database.write("turn", partial(changes.write, change=change))\n',
        seed=15,
    ),
    Bug(
        name="scrubbed-a-round-too-many",
        breaks="what the policy keeps is kept",
        file=f"{_COORDINATOR}/retention.py",
        old="updates = tuple(n for n in self.rounds if n <= number - spec.updates_kept)",
        new="updates = tuple(n for n in self.rounds if n <= number - spec.updates_kept + 1)",
    ),
    Bug(
        name="scrubbed-a-round-too-few",
        breaks="what the policy does not keep goes",
        file=f"{_COORDINATOR}/retention.py",
        old="updates = tuple(n for n in self.rounds if n <= number - spec.updates_kept)",
        new="updates = tuple(n for n in self.rounds if n < number - spec.updates_kept)",
    ),
    Bug(
        name="newest-state-scrubbed",
        breaks="the newest state always stays",
        file=f"{_COORDINATOR}/retention.py",
        old="return tuple(v for v in self.versions if v.round <= number)[:-1]",
        new="return tuple(v for v in self.versions if v.round <= number)",
        seed=3,
    ),
    Bug(
        name="collected-though-named",
        breaks="a content stays while a row names it",
        file=f"{_COORDINATOR}/store/queries.py",
        old="    free = sorted(digests - set(tx.execute(named).scalars()))\n",
        new="    free = sorted(digests)\n",
    ),
    # -- the device's memory ----------------------------------------------------------------------------------
    Bug(
        name="sent-before-it-is-kept",
        breaks="an update is on disk before it is sent",
        file=f"{_CLIENT}/conversation.py",
        old="            try:\n                self._outbox.keep(self.run, self._sent)\n",
        new="            try:\n                self._answer()\n                self._outbox.keep(self.run, self._sent)\n",
    ),
    Bug(
        name="never-kept",
        breaks="an update is on disk before it is sent",
        file=f"{_CLIENT}/outbox/disk.py",
        old='File(self._path(run, "sent"), header, parts)',
        new='File(self._path(run, "sent.new"), header, parts)',
    ),
    Bug(
        name="state-written-over-the-committed",
        breaks="the committed state stands until the update is counted",
        file=f"{_CLIENT}/outbox/disk.py",
        old='path, pending = self._path(run, f"state-{one.turn}"), sent.pending',
        new='path, pending = self._path(run, f"state-{one.base or one.turn}"), sent.pending',
    ),
    Bug(
        name="committed-as-soon-as-kept",
        breaks="the committed state stands until the update is counted",
        file=f"{_CLIENT}/outbox/disk.py",
        old="replace(one, kept=after, out=one.turn, level=True)",
        new="replace(one, kept=after, base=one.turn, out=one.turn, level=True)",
    ),
    Bug(
        name="committed-in-memory-alone",
        breaks="what was counted is on disk with the next update",
        file=f"{_CLIENT}/outbox/disk.py",
        old="base = one.base if after.state is one.kept.state else one.out",
        new="base = one.base",
        seed=6,
    ),
    Bug(
        name="forgotten-when-staged",
        breaks="an update is kept until its fate is known",
        file=f"{_CLIENT}/conversation.py",
        old="                verdict = convert.verdict_from(message.receipt)\n",
        new="                verdict = convert.verdict_from(message.receipt)\n"
        '                if verdict == "STAGED":\n'
        "                    self._outbox.drop(self.run, message.receipt.round)\n",
    ),
    Bug(
        name="state-final-when-handed-in",
        breaks="the device's state becomes final on COUNTED alone",
        file=f"{_CLIENT}/conversation.py",
        old="        self._step(member.Submitted(prepared.blob.digest))\n",
        new="        self.state = prepared.pending\n        self._step(member.Submitted(prepared.blob.digest))\n",
    ),
    Bug(
        name="state-final-when-staged",
        breaks="the device's state becomes final on COUNTED alone",
        file=f"{_CORE}/round/member.py",
        old='    if verdict == "STAGED":\n        return replace(m, stage="staged"), ()\n',
        new='    if verdict == "STAGED":\n        return replace(m, stage="staged"), (Commit(round_),)\n',
    ),
    Bug(
        name="state-final-though-not-counted",
        breaks="the device's state becomes final on COUNTED alone",
        file=f"{_CORE}/round/member.py",
        old='Commit(round_) if verdict == "COUNTED" else Drop(round_, reason)',
        new='Commit(round_) if verdict == "COUNTED" or m.stage == "staged" else Drop(round_, reason)',
    ),
    Bug(
        name="state-of-what-was-computed",
        breaks="the device's state follows from what was sent, not from what was computed",
        file=f"{_CORE}/strategy/runner.py",
        old="self.strategy.commit(mine, down, work, learned, layout.split(made.sent, head.totals))",
        new="self.strategy.commit(mine, down, work, learned, up)",
    ),
    Bug(
        name="settled-not-remembered",
        breaks="a device knows which rounds counted it",
        file=f"{_CLIENT}/conversation.py",
        old="        self._sent, self._settled = None, round_\n",
        new="        self._sent = None\n",
    ),
    Bug(
        name="anyones-receipt",
        breaks="a receipt settles the round that it names",
        file=f"{_CORE}/round/member.py",
        old='    if round_ != m.round:\n        return m, ()\n    if m.stage == "working":',
        new='    if m.stage == "working":',
        seed=10,
    ),
    # -- the device's half of the conversation ----------------------------------------------------------------
    Bug(
        name="other-bytes-the-second-time",
        breaks="a retry sends the same bytes",
        file=f"{_CLIENT}/conversation.py",
        old="            head=convert.head_to(sent.head),",
        new="            head=convert.head_to(type(sent.head)(\n"
        '                examples=sent.head.examples, totals=sent.head.totals, steps=int(self.member.stage == "sent"))),',
    ),
    Bug(
        name="not-sent-again",
        breaks="an answer is sent again after every reconnection",
        file=f"{_CORE}/round/member.py",
        old="return m, (Offer(m.round), Answer(m.round, m.digest))",
        new="return m, (Offer(m.round),)",
        seed=1,
    ),
    Bug(
        name="trained-again-after-a-restart",
        breaks="a round that has its update is not trained again",
        file=f"{_CLIENT}/conversation.py",
        old='self.member = Member(stage="sent", terms=terms, digest=kept.sent.digest, done=terms.round)',
        new="self.member = Member()",
    ),
    Bug(
        name="an-old-stream-takes-the-new-one-along",
        breaks="a device that came back is attached",
        file=f"{_COORDINATOR}/roster.py",
        old="        if self._by_client.get(connection.client) is not connection:\n            return False\n",
        new="        if connection.client not in self._by_client:\n            return False\n",
        seed=10,
    ),
    # -- found by the worlds themselves, and planted again ----------------------------------------------------
    Bug(
        name="an-outage-that-a-second-kill-hides",
        breaks="deadlines count owned time, also where a take-up is killed before it is stored",
        file=f"{_COORDINATOR}/store/owners.py",
        old=".values(owner=owner))\n    return Held",
        new=".values(owner=owner, beat=now))\n    return Held",
        seed=339,
    ),
    Bug(
        name="not-begun-says-a-stale-owner",
        breaks="a verdict is what is stored, not what somebody remembers",
        file=f"{_COORDINATOR}/devices.py",
        old="            if answer.round <= (await self._fed.db(self._fed.store.run, row.id)).number:\n",
        new="            if False:\n",
        seed=13,
    ),
    Bug(
        name="only-those-who-offered-are-cut-off",
        breaks="nobody hangs on a coordinator that lost the run",
        file=f"{_COORDINATOR}/driver.py",
        old="        for connection in self._roster.in_run(self.run.id):\n            connection.cut()",
        new="        for connection in self._roster.in_run(self.run.id):\n"
        "            if connection.client in self.run.devices:\n                connection.cut()",
        seed=9,
    ),
    # -- secure rounds: who goes on, and when -----------------------------------------------------------------
    Bug(
        name="shared-by-too-few-to-recover",
        breaks="a session goes on only with devices that could recover one another",
        file=f"{_CORE}/round/masked.py",
        old="return len(u2) >= least(r) and all(cohort.recoverable(v, u2) for v in u2)",
        new="return len(u2) >= least(r)",
        seed=50,
    ),
    Bug(
        name="a-neighbour-fewer-is-enough",
        breaks="a secret needs as many shares as it was split for",
        file=f"{_CORE}/secagg/cohort.py",
        old="return len(around & helpers) >= self.t\n",
        new="return len(around & helpers) >= self.t - 1\n",
        seed=8,
    ),
    Bug(
        name="opened-below-the-least",
        breaks="no sum is opened of fewer than the quorum",
        file=f"{_CORE}/round/masked.py",
        old="    if len(in_sum) < least(r):\n",
        new="    if len(in_sum) < least(r) - 1:\n",
        seed=62,
    ),
    Bug(
        name="one-attempt-too-many",
        breaks="a sum is tried as often as the terms say",
        file=f"{_CORE}/round/masked.py",
        old="if m.attempt + 1 >= attempts or len(asked)",
        new="if m.attempt >= attempts or len(asked)",
        seed=11,
    ),
    Bug(
        name="another-attempt-after-a-reveal",
        breaks="once anybody was asked to reveal, the round begins no more",
        file=f"{_CORE}/round/masked.py",
        old='        return _never_opened(r, at, f"only ',
        new='        return _again(r, at, f"only ',
        seed=2,
    ),
    Bug(
        name="spoiled-does-not-wait",
        breaks="a wrong share costs only its sender, as long as others can still answer",
        file=f"{_CORE}/round/masked.py",
        old="if m.thorough or not m.now.awaited:",
        new="if m.thorough or m.now.awaited:",
        seed=29,
    ),
    Bug(
        name="agreed-as-soon-as-enough",
        breaks="all who are in the sum have until the deadline to agree to it",
        file=f"{_CORE}/round/masked.py",
        old='case "consistent":\n            if not over and _possible(r, _opening):',
        new='case "consistent":\n            if not over and not _kept(r, lambda c: _opening(r, c, frozenset(now.heard))):',
        seed=5,
    ),
    Bug(
        name="reveals-without-agreement",
        breaks="only who agreed to the sum is asked to open it",
        file=f"{_CORE}/round/masked.py",
        old='return _then(failed, _go_on(r, "reveal", signed & members,',
        new='return _then(failed, _go_on(r, "reveal", members & r.update.heard.keys(),',
        seed=11,
    ),
    Bug(
        name="survivors-are-all-who-dealt",
        breaks="who is in the sum is who masked, and no other",
        file=f"{_CORE}/secure/sessions.py",
        old="members.intersection(self._r.update.heard)",
        new="members & self._r.masking.shares",
        seed=11,
    ),
    Bug(
        name="masked-by-the-short-deadline",
        breaks="training has the round's deadline",
        file=f"{_CORE}/round/masked.py",
        old='_go_on(r, "masked", u2, at + r.terms.deadline)',
        new='_go_on(r, "masked", u2, at + r.terms.secure["phase"])',
        seed=2,
    ),
    Bug(
        name="session-deadline-runs-on-while-dead",
        breaks="a collection's deadline counts owned time",
        file=f"{_CORE}/round/machine.py",
        old="        return replace(r, masking=replace(r.masking, now=later))\n",
        new="        return r\n",
        seed=14,
    ),
    Bug(
        name="no-lease-in-a-session",
        breaks="whoever is gone is given up after its lease, in every collection",
        file=f"{_CORE}/run/machine.py",
        old="    return _renew(replace(run, devices=devices, leases={client: 0.0, **run.leases}), client, at)",
        new="    run = replace(run, devices=devices)\n"
        "    if run.round is not None and not _is_work(run.round):\n        return run\n"
        "    return _renew(replace(run, leases={client: 0.0, **run.leases}), client, at)",
        seed=32,
    ),
    Bug(
        name="counted-when-masked",
        breaks="COUNTED is said of a sum that is opened and stored",
        file=f"{_CORE}/round/masked.py",
        old='        told = (Receipt(client, r.terms.round, "STAGED"),)\n    r, effects',
        new='        told = (Receipt(client, r.terms.round, "COUNTED"),)\n    r, effects',
        seed=2,
    ),
    # -- secure rounds: what is kept, and what is not ---------------------------------------------------------
    Bug(
        name="session-key-not-destroyed",
        breaks="what was said in a session is lost with its round",
        file=f"{_COORDINATOR}/store/face.py",
        old="            for round_ in change.opened:\n                self.vault.destroy(change.run.id, round_)\n",
        new="",
        seed=2,
    ),
    Bug(
        name="session-key-left-by-a-turn-of-which-nobody-knows",
        breaks="what was said in a session is lost with its round",
        file=f"{_COORDINATOR}/ledger.py",
        old="        change.opened = self._left_over(book.run)\n",
        new="",
        seed=62,
    ),
    Bug(
        name="payloads-kept",
        breaks="what was said in a session goes with its round",
        file=f"{_COORDINATOR}/store/changes.py",
        old="    if change.opened:\n",
        new="    if change.opened and not rows:\n",
        seed=11,
    ),
    Bug(
        name="said-forgotten",
        breaks="a restarted coordinator knows what devices said",
        file=f"{_COORDINATOR}/book.py",
        old="            said = {(p.collection, p.client): p.data for p in payloads}\n",
        new="            said = {(p.collection, p.client): p.data for p in payloads if p.collection == 'keys'}\n",
        seed=8,
    ),
    # -- secure rounds: the device ----------------------------------------------------------------------------
    Bug(
        name="said-before-it-is-in-the-journal",
        breaks="a word is in the journal before it leaves",
        file=f"{_CLIENT}/masking.py",
        old="payload, blob)\n        self._save()\n        return now.word\n",
        new="payload, blob)\n        return now.word\n",
        seed=2,
    ),
    Bug(
        name="fresh-keys-after-a-kill",
        breaks="a device has one word for each collection of an attempt",
        file=f"{_CLIENT}/masking.py",
        old="        if entry.secrets:  # or it was opened, and nothing was said yet\n",
        new="        if entry.secrets and entry.facts['said'] == 'masked':\n",
        seed=8,
    ),
    Bug(
        name="fresh-keys-after-a-kill-in-training",
        breaks="a device has one word for each collection of an attempt",
        file=f"{_CLIENT}/masking.py",
        old='            if entry is None or entry.facts.get("terms") != terms.digest:\n',
        new="            if True:\n",
        seed=56,
    ),
    Bug(
        name="agrees-to-whatever-it-is-told",
        breaks="a device agrees to one sum in an attempt, whatever it is asked next",
        file=f"{_CORE}/secagg/masker.py",
        old='        again = self._again("consented", survivors)\n        if again is not None:\n            return again\n',
        new="",
        seed=44,
    ),
    Bug(
        name="joins-after-its-reveal",
        breaks="whoever has revealed joins no further attempt",
        file=f"{_CLIENT}/masking.py",
        old="        if now.masker is not None and now.masker.revealed:\n",
        new="        if now.masker is None:\n",
        seed=2,
    ),
    Bug(
        name="both-halves-of-a-share",
        breaks="of each device one of its two secrets is given back",
        file=f"{_CORE}/secagg/masker.py",
        old="given[p] = half(share, p in survivors)",
        new="given[p] = share",
        seed=2,
    ),
    Bug(
        name="secrets-outlive-their-round",
        breaks="nothing of a session stays on a device when its round is settled",
        file=f"{_CLIENT}/masking.py",
        old="                self._journal.end(self._run)\n",
        new="                pass\n",
        seed=2,
    ),
)
