"""Words that change what a text says of a finding: who has it, whether it is there, and how sure that is.

Tables only; `weightsmith_phenotype.context.scope` reads them. A phrase is words between blanks, ``a|b`` is a choice,
``_`` is a blank inside a choice, and phrases are separated by semicolons. ``not`` stands for every form of it
(``cannot``, ``didn't``, ...). Where two phrases match at one word the longer one counts, so a harmless phrase hides
the cue that it contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from itertools import product
from typing import NamedTuple

__all__ = [
    "AFFIRMING",
    "AFTER_BACKWARD",
    "AUXILIARIES",
    "CUES",
    "DEGREES",
    "DESCENDANTS",
    "DOUBTING",
    "EVIDENCE",
    "EXAMPLES",
    "FEMININE",
    "FRESH",
    "HEADINGS",
    "LINKS",
    "MASCULINE",
    "NAMED",
    "NOT_A_SUBJECT",
    "OF_A_RELATIVE",
    "OPENERS",
    "PATIENT",
    "PREPOSITIONS",
    "PRONOUNS",
    "QUESTIONS",
    "RELATIVES",
    "SECTIONS",
    "SOME",
    "TELLING",
    "TESTS",
    "TITLES",
    "WELL",
    "Cue",
    "Direction",
    "Kind",
    "Node",
    "Reach",
    "table",
]


class Kind(Enum):
    """What a cue says."""

    NEGATED = auto()
    FAMILY = auto()
    UNCERTAIN = auto()
    NOTHING = auto()
    """The phrase looks like a cue and is none."""
    END = auto()
    """A scope does not go on past this phrase."""


class Direction(Enum):
    """Where the findings stand that a cue speaks of."""

    FORWARD = auto()
    BACKWARD = auto()
    EITHER = auto()
    """Backward before a sign, the end, or a word of `AFTER_BACKWARD`; else forward."""
    PASSIVE = auto()
    """As EITHER, and backward also after a form of "to be"."""
    CLOSING = auto()
    """Backward under the condition of EITHER, else nothing."""
    AROUND = auto()
    """Both the finding before and the finding after."""
    VALUE = auto()
    """The finding that it is said of and no other: "normal gait", "gait: normal", "gait was normal"."""
    LABELED = auto()
    """What stands before it and a colon: "allergies: NKDA"."""
    HEAD = auto()
    """The finding that is the word right before it: "seizure precautions"."""


class Reach(Enum):
    """How far a cue reaches, in items of a list."""

    NEXT = auto()
    """The very next word."""
    NEAR = auto()
    """A finding that begins within three words."""
    ITEM = auto()
    """To the first comma or "and"; "or" goes on."""
    LIST = auto()
    """A list, by the rule of `weightsmith_phenotype.context`."""
    NOUN = auto()
    """As LIST at the beginning of a sentence, else as ITEM: "lack of coordination and chorea" is two findings."""
    ALL = auto()
    """A list, however it is joined."""
    CLAUSE = auto()
    """A list, past subjects and verbs."""
    SENTENCE = auto()
    """To where the patient is the subject, or a new verb begins."""


class Cue(NamedTuple):
    """What a phrase says, of which findings."""

    kind: Kind
    direction: Direction = Direction.FORWARD
    reach: Reach = Reach.LIST


def table(text: str, separator: str | None = None) -> frozenset[str]:
    """The words of a table, each once."""
    return frozenset(text.split(separator))


_AROUND_BAR = re.compile(r"\s*\|\s*")

_SEEN = """
observed|seen|noted|noticed|found|present|detected|reported|described|identified|evident|demonstrated|documented
|visualized|visualised|appreciated|apparent|confirmed|recorded|elicited|elicitable|palpable|palpated|felt|heard|known
|mentioned|encountered|diagnosed|recognized|recognised|shown|visible|discernible|verified|established|observable
|noticeable|detectable"""
_SHOW = """
have|has|had|having|show|showed|shown|showing|reveal|revealed|demonstrate|demonstrated|exhibit|exhibited|display
|displayed|develop|developed|experience|experienced|report|reported|find|found|detect|detected|see|saw|observe|identify
|note|notice|manifest|include|disclose|indicate|feel|hear|visualize|confirm|support|suggest|present_with|suffer_from
|suffered_from|complain_of|complained_of|meet_criteria_for|endorse|endorsed|any|seem_to_have|appear_to_have
|known_to_have|thought_to_have|in_keeping_with"""
_MAY_DO = """
have|be|represent|indicate|reflect|suggest|develop|experience|become|show|suffer_from|result_in|include|cause
|present_with|lead_to|get|exhibit|manifest|signify|point_to"""
_HAPPEN = """
occur|occurs|occurred|recur|recurs|recurred|exist|existed|happen|happened|arise|arose|appear|appeared|develop"""

_PHRASES: tuple[tuple[Cue, str], ...] = (
    # It is not there. Of two equal phrases the first counts.
    (Cue(Kind.NEGATED, Direction.PASSIVE, Reach.ALL), f"denied; ruled out; excluded; not|never {_SEEN}"),
    (Cue(Kind.NEGATED, Direction.EITHER), "no; lacking"),
    (Cue(Kind.NEGATED, Direction.CLOSING), "negative; neg; free; - free"),
    (Cue(Kind.NEGATED), "without; w / o; lacks|lacked; nil"),
    (Cue(Kind.NEGATED, reach=Reach.NOUN), "absence|lack of"),
    (
        Cue(Kind.NEGATED, reach=Reach.CLAUSE),
        """neither; nor; at no time|point; on no occasion; none|neither of;
        no patient|patients|child|children|individual|individuals|subject|subjects|one|participant|participants""",
    ),
    (Cue(Kind.NEGATED, reach=Reach.NEAR), "not"),
    (Cue(Kind.NEGATED, Direction.EITHER, Reach.NEAR), "never"),
    (Cue(Kind.NEGATED, reach=Reach.NEXT), "non -; non"),
    (
        Cue(Kind.NEGATED, reach=Reach.ALL),
        f"""denies|deny|denying; negative|neg for; neg . for; negative with respect|regard to; unremarkable for;
        free of|from; nothing to suggest|indicate; ruled out for; rules|ruling out; excludes|excluding; exclusion of;
        speak|speaks|argue|argues|evidence against; not|never {_SHOW}; fails|failed|failing to {_SHOW}""",
    ),
    (Cue(Kind.NEGATED, Direction.EITHER, Reach.ITEM), "absent"),
    (Cue(Kind.NEGATED, Direction.EITHER, Reach.ALL), f"not|never {_HAPPEN}"),
    (
        Cue(Kind.NEGATED, Direction.BACKWARD),
        "none; not a problem|issue|feature|concern|complaint|finding",
    ),
    (
        Cue(Kind.NEGATED, Direction.VALUE, Reach.NEXT),
        "normal|good|unremarkable|intact|wnl; within normal limits|range|bounds; within the normal range",
    ),
    (Cue(Kind.NEGATED, Direction.LABELED), "nkda; nka; no known drug|food|medication allergies; no known allergies"),
    # Looks like it, and says nothing of the finding's being there.
    (
        Cue(Kind.NOTHING),
        """no increase|decrease|change|changes|improvement|progression|worsening|deterioration|recurrence|relief|relapse
        |response|benefit|effect|correlation|correlations|association|associations|relation|relationship|link;
        no significant|clear|clear_cut|relevant|major|obvious increase|decrease|change|changes|improvement|correlation
        |correlations|association|difference|relationship;
        no further|new|longer|more|less|worse|better|later|sooner|doubt|question|matter;
        without difficulty|question|doubt|treatment|delay;
        not only|just|merely|always|all|every|necessarily|surprisingly|infrequently|uncommon|uncommonly|unusual
        |controlled|respond|responding|due|because|since|until|before|explained|related|treated|relieved|improve
        |improved|affected_by;
        not certain|sure|clear; not known when|why|how;
        gram|rh|hiv - negative; gram negative; negative affect;
        suggest|suggests|suggested|suggesting that the;
        maternal|paternal|parental age|side|line|inheritance|allele|transmission; such as; as in; as well as; if any;
        not|never without|absent|negative|lack|lacked; not|never deny|denied|denies; not|never free of|from;
        no absence|lack of; not|never|no|without|less_than|loss_of|below|above normal|good|intact; not|never
        within normal limits|range|bounds; not within the normal range""",
    ),
    # It may be there, or may come.
    (
        Cue(Kind.UNCERTAIN, Direction.EITHER, Reach.ITEM),
        """possible|possibly|probable|probably|questionable|questionably|suspected|presumed|presumably|likely|unlikely
        |potential|potentially|perhaps|maybe|equivocal|doubtful|query|putative|unconfirmed|uncertain|unclear;
        most|very likely; likely|possibly|probably|presumably due|secondary to""",
    ),
    (
        Cue(Kind.UNCERTAIN, reach=Reach.ALL),
        f"""rule|ruling out; rule in or out; r / o; to exclude; not rule out; not exclude;
        not entirely|completely|fully|safely exclude; suspect|suspects|suspecting; suspicion|suspicions of|for;
        suspicious for|of; suggestive of; suggest|suggests|suggesting|suggested; possibility|question of; consider;
        concern|concerns|concerned|concerning for|of|about; worry|worries|worried about; fear of;
        may|might|could {_MAY_DO}; may|might|could have had|been|developed; can develop|cause|lead_to|result_in;
        likely|unlikely|expected to have|show|be;
        screen|screened|screening|test|tested|testing|monitor|monitored|monitoring|watch|watching|surveillance|vigilance
        |look|looking|check for; not tested|screened|examined|evaluated|assessed|investigated for;
        risk|risks of|for; at risk; prone to; predisposed|predisposes|predisposing|predisposition|susceptible
        |susceptibility to; in case|cases of; in the event of; differential diagnosis|diagnoses;
        prevent|preventing; prevention of; prophylaxis against|for|of""",
    ),
    (Cue(Kind.UNCERTAIN, reach=Reach.ITEM), "with or|/ without"),
    (Cue(Kind.UNCERTAIN, Direction.EITHER, Reach.ITEM), "+ / -; ( + / - ); ±"),
    (Cue(Kind.UNCERTAIN, reach=Reach.NEXT), "anti -; anti"),
    (
        Cue(Kind.UNCERTAIN, Direction.HEAD),
        """medication|medications|medicine|medicines|drugs|med|meds|precaution|precautions|prophylaxis|syrup|syrups
        |reducer|reducers|reliever|relievers|killer|killers|risk|risks|screen|screening|prevention|questionnaire|workup
        |evaluation|clinic|clinics; work - up""",
    ),
    (
        Cue(Kind.UNCERTAIN, reach=Reach.ALL),
        """counselled|counseled|counselling|counseling|educated|advised|warned about|of|on|regarding;
        side_effects|risks include; risks including|such_as; discussed|reviewed side_effects|complications
        including|such_as|of; call|return for; side_effects|risks|symptoms may|can include;
        return precautions for|including|regarding""",
    ),
    (
        Cue(Kind.UNCERTAIN, reach=Reach.CLAUSE),
        "if; whether; whether or not; not certain|sure|clear|known whether|if; unless; should; as if; as though",
    ),
    (
        Cue(Kind.UNCERTAIN, Direction.EITHER, Reach.ALL),
        "likely|unlikely|expected to develop|occur|recur|become|appear",
    ),
    (Cue(Kind.UNCERTAIN, Direction.AROUND, Reach.ITEM), "versus; vs; vs ."),
    (
        Cue(Kind.UNCERTAIN, Direction.BACKWARD),
        f"""not excluded|ruled_out; not completely|entirely|fully|safely excluded;
        be|been considered; to be excluded|ruled_out|confirmed|determined|considered;
        must|should|needs be excluded|considered; a possibility|consideration; in question;
        may|might be {_SEEN};
        may|might|could|can|would|will be present|expected; can be seen|found;
        would|will expected; is|are expected;
        may|might|could|can|will|would|should {_HAPPEN}""",
    ),
    # Whose it is. Relatives themselves stand below: what they do decides.
    (
        Cue(Kind.FAMILY, reach=Reach.SENTENCE),
        "family|familial|hereditary history; family history of|for; family medical history; fhx; fh; fam hx",
    ),
    (Cue(Kind.FAMILY, reach=Reach.ITEM), "maternal|paternal|parental"),
    (
        Cue(Kind.FAMILY, Direction.BACKWARD),
        "in|within the|his|her|their|this family|pedigree|families; on the maternal|paternal side",
    ),
    # A scope ends here.
    (
        Cue(Kind.END),
        """but; however; although; though; except; except for; excepting; apart|aside from; other than; besides;
        nevertheless; nonetheless; yet; whereas; while; instead; rather; because; because of; due|owing|secondary to;
        despite; in spite of; since; until; after; following; before; when; then; therefore; thus; so; still; only;
        save for; with the exception of; in addition|contrast to; in contrast; on the other hand;
        which is|was|were|has|had; who; whom; whose; where; presenting with; resulting in; leading to;
        referred|admitted for; reports|reporting|admits""",
    ),
)

AFFIRMING = table("yes pos present positive persists persisted confirmed evident + worsened continued continues")
"""Words that say that a finding is there, when they follow it."""

AUXILIARIES = table(
    "is was are were be been being am has have had do does did can could may might will would shall should must "
    "became become becomes began begins started starts remains remained remain shows showed presents presented "
    "developed reports reported appeared appears occurred occurs revealed reveals suffers suffered resolved "
    "needs needed required requires followed follows reached weighed walks walked persists persisted increased "
    "increases worsened continues continued confirmed complains complained exhibits exhibited demonstrates "
    "demonstrated displays displayed"
)
"""Verbs that make what stands before them a subject."""

FRESH = table(
    "a an the his her their its this these with has had is was are were now also additionally furthermore there he she "
    "it they we"
)
"""First words of an item that is told for itself: "no cleft palate, a long philtrum"."""

DEGREES = table(
    "mild moderate severe marked profound bilateral unilateral left right slight prominent progressive significant"
)
"""First words of an item that is told for itself, unless "or" closes the list: "no seizures, severe ataxia"."""

EVIDENCE = table(
    "evidence sign signs history histories feature features symptom symptoms indication indications suggestion "
    "complaint complaints complaining episode episodes finding findings stigmata hint hints trace traces report "
    "reports mention case cases record records occurrence presence documentation manifestation manifestations "
    "diagnosis form "
    "forms type types kind sort degree problem problems issue issues proof clue clues criteria attack attacks bout "
    "bouts concern concerns suspicion suspicions risk signal pattern patterns appearance instance instances amount "
    "onset family suggestive suspicious indicative typical characteristic development involvement existence detection"
)
"""Nouns that hand a negation on: "no sign of ataxia" denies the ataxia, "no relief of the pain" does not."""

AFTER_BACKWARD = table(
    "in on by at from since during after before until based because but and or so with within to under clinically "
    "either anywhere yet anymore any throughout as then when while although though if for ever radiologically either "
    "initially today here there now previously"
)
"""Words after a cue that say that its finding stood before it: "ptosis was absent in the evening"."""

LINKS = table(
    "been be yet ever clearly clinically definitely obviously reportedly previously currently also otherwise any "
    "convincingly really actually truly apparently initially formally"
)
"""Words that may stand inside a phrase: "not clearly seen"."""

OPENERS = table(
    "in at on during after since although though while for by apart besides except aside when as before until from "
    "with despite over within clinically currently today initially"
)
"""First words of what only leads up to the clause: "at birth, no cyanosis"."""

EXAMPLES = table("such including like namely eg")
"""First words of a list of examples, which is one list whatever stands before it."""

PREPOSITIONS = table("of for in on to from")

TESTS = table(
    "test tests testing panel analysis screen screening eeg emg pcr culture cultures biopsy study studies sequencing "
    "array serology antibodies scan mri ct x-ray radiograph ultrasound gene result results exome karyotype"
)
"""What is negative without a finding's being absent."""

QUESTIONS = table(
    "does do did is has have any are was were could can might would will should whether what which who why how"
)
"""First words of a question."""


def _spelled(phrase: str) -> Iterator[tuple[str, ...]]:
    for words in product(*(choice.split("|") for choice in _AROUND_BAR.sub("|", phrase).split())):
        yield tuple(" ".join(words).replace("_", " ").split())


class Node:
    """A word of a phrase: the cue of the phrase that ends with it, if any, and the words that may follow."""

    __slots__ = ("cue", "following")

    def __init__(self) -> None:
        self.cue: Cue | None = None
        self.following: dict[str, Node] = {}


def _trie() -> dict[str, Node]:
    root = Node()
    for cue, phrases in _PHRASES:
        for phrase in phrases.split(";"):
            for words in _spelled(phrase):
                node = root
                for word in words:
                    node = node.following.setdefault(word, Node())
                node.cue = node.cue or cue
    return root.following


CUES = _trie()
"""All phrases, by their first words."""

RELATIVES = table(
    "mother father mom mum dad parent parents brother brothers sister sisters sibling siblings sib sibs aunt aunts "
    "uncle uncles cousin cousins nephew nephews niece nieces grandmother grandfather grandparent grandparents "
    "grandmothers grandfathers grandma grandpa grandson granddaughter grandchildren relative relatives son sons "
    "daughter daughters husband wife half-brother half-sister stepbrother stepsister kindred"
)
"""Nouns for the patient's relatives."""

MASCULINE = table("father dad brother uncle nephew grandfather grandpa grandson son husband")
FEMININE = table("mother mom mum sister aunt niece grandmother grandma granddaughter daughter wife")

DESCENDANTS = table("son daughter sons daughters")
"""With "of" after them these are the patient: "the son of healthy parents"."""

PATIENT = table(
    "patient patients proband probands proposita propositus boy boys girl girls child children infant newborn neonate "
    "baby fetus foetus he she they himself herself case subject man woman adolescent toddler index"
)
"""Subjects that are the patient."""

PRONOUNS = table("he she they we it i")

NAMED = PATIENT - PRONOUNS
"""Subjects that can only be the patient."""

DOUBTING = table(
    "suspicion suspicions concern concerns risk risks suggest suggests suggesting suggested suggestive suspicious"
)
"""First words of uncertain phrases that are denied as a whole: "no suspicion of" is "no"."""

OF_A_RELATIVE = table(
    "a an the one two three four five several many other his her their our this my both all some any another older "
    "younger elder eldest oldest youngest affected unaffected healthy first second third maternal paternal twin twins "
    "half full only late biological adoptive great patient's proband's boy's girl's child's infant's patients' close "
    "distant deceased identical dizygotic monozygotic non consanguineous nonconsanguineous unrelated multiple female "
    "male dead - s degree step"
)
"""Words between a preposition or verb and a relative."""

NOT_A_SUBJECT = table(
    "from by with to per like unlike of than via without toward towards resembling resembles accompanied informed for "
    "against despite between"
)
"""Before a relative: somebody else has the finding ("brought by his mother for seizures")."""

TELLING = table(
    "report reports reported reporting say says said state states stated notice notices noticed note notes noted "
    "describe describes described deny denies denied tell tells told think thinks thought believe believes believed "
    "bring brings brought recall recalls recalled observe observes observed mention mentions mentioned give gave "
    "educated counselled counseled advised warned concerned worried worry wonder wonders wondered complain complained "
    "complains ask asks asked request requested "
    "feel feels felt see sees saw record recorded estimate estimated remember remembers remembered claim claims "
    "claimed confirm confirms confirmed indicate indicates indicated deliver delivered pregnancy opinion account words "
    "wish wishes wished fear fears feared decided declined refused seek sought suspect suspects suspected"
)
"""What a relative does who speaks of the patient."""

WELL = table(
    "healthy unaffected well normal asymptomatic alive consanguineous nonconsanguineous unrelated carriers carrier "
    "heterozygous first second related"
)
"""What a relative is of whom nothing else is told in this clause."""

SOME = table("none one two three four five some both all several many neither each any most")
"""With "of" and relatives after them these are relatives: "none of the sibs"."""

HEADINGS: tuple[tuple[Kind, frozenset[str]], ...] = (
    (Kind.FAMILY, frozenset({"family history", "family medical history", "fhx", "fh", "fam hx"})),
    (
        Kind.NEGATED,
        table(
            "negative;negatives;absent;denies;denied;excluded;ruled out;not seen;not present;not observed;not found;"
            "no evidence of;no signs of;not reported;not detected;unaffected systems;findings not present",
            ";",
        ),
    ),
    (
        Kind.UNCERTAIN,
        table(
            "differential;differential diagnosis;differential diagnoses;suspected;possible;rule out;to rule out;"
            "to exclude;risk factors;risks;questionable;ddx;working diagnosis;to be excluded;uncertain",
            ";",
        ),
    ),
)
"""Words of a heading that govern what stands below it."""

TITLES = table(
    "family history;family medical history;negative findings;pertinent negatives;absent findings;negatives;"
    "findings not present;differential diagnosis;differential diagnoses;suspected diagnoses;risk factors",
    ";",
)
"""Headings that need no colon, as no finding is reported in these words."""

SECTIONS = table(
    "history examination exam pe findings summary impression assessment plan medications medication labs laboratory "
    "imaging course diagnosis diagnoses pmh pmhx hpi ros conclusion introduction methods results "
    "discussion presentation "
    "investigations treatment allergies background case report neurological social birth development positive present "
    "reports seen patient proband follow-up recommendations"
)
"""Words of headings that end what an earlier heading governed."""
