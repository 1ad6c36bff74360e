"""English nouns, verbs, adjectives and adverbs with their forms."""

from __future__ import annotations

from promptlora.data.synthetic.vocabulary.tables import pairs, table, words

#: Singular to plural.
PLURALS = pairs("""
apple: apples; boat: boats; book: books; bottle: bottles; bridge: bridges; button: buttons; candle: candles; carpet: carpets
castle: castles; chair: chairs; cloud: clouds; coat: coats; cup: cups; curtain: curtains; desk: desks; doctor: doctors
door: doors; drawer: drawers; engine: engines; farmer: farmers; field: fields; flower: flowers; forest: forests
garden: gardens; guitar: guitars; hammer: hammers; hotel: hotels; island: islands; jacket: jackets; kettle: kettles
key: keys; lamp: lamps; letter: letters; market: markets; mirror: mirrors; mountain: mountains; needle: needles
orange: oranges; painter: painters; paper: papers; pencil: pencils; picture: pictures; pillow: pillows; planet: planets
pocket: pockets; queen: queens; rabbit: rabbits; river: rivers; rocket: rockets; school: schools; shadow: shadows
ship: ships; singer: singers; spoon: spoons; stone: stones; street: streets; student: students; table: tables
teacher: teachers; tiger: tigers; tower: towers; train: trains; tunnel: tunnels; uncle: uncles; valley: valleys
village: villages; wagon: wagons; wallet: wallets; window: windows; winter: winters; boy: boys; toy: toys; day: days
monkey: monkeys; donkey: donkeys; box: boxes; bus: buses; glass: glasses; dish: dishes; brush: brushes; church: churches
bench: benches; watch: watches; fox: foxes; class: classes; dress: dresses; peach: peaches; beach: beaches; match: matches
wish: wishes; lunch: lunches; branch: branches; city: cities; baby: babies; lady: ladies; story: stories; party: parties
berry: berries; puppy: puppies; family: families; country: countries; cherry: cherries; factory: factories; army: armies
copy: copies; diary: diaries; fairy: fairies; penny: pennies; leaf: leaves; knife: knives; wife: wives; wolf: wolves
shelf: shelves; half: halves; life: lives; loaf: loaves; thief: thieves; calf: calves; man: men; woman: women
child: children; foot: feet; tooth: teeth; goose: geese; mouse: mice; person: people; tomato: tomatoes; potato: potatoes
hero: heroes; echo: echoes; piano: pianos; photo: photos; radio: radios; sheep: sheep; deer: deer; fish: fish; ox: oxen
""")

#: Base form, third person singular, past, past participle, -ing form.
VERBS = table("""
walk: walks: walked: walked: walking; talk: talks: talked: talked: talking; play: plays: played: played: playing
jump: jumps: jumped: jumped: jumping; call: calls: called: called: calling; help: helps: helped: helped: helping
open: opens: opened: opened: opening; clean: cleans: cleaned: cleaned: cleaning; cook: cooks: cooked: cooked: cooking
paint: paints: painted: painted: painting; look: looks: looked: looked: looking; work: works: worked: worked: working
wait: waits: waited: waited: waiting; learn: learns: learned: learned: learning; answer: answers: answered: answered: answering
move: moves: moved: moved: moving; close: closes: closed: closed: closing; dance: dances: danced: danced: dancing
smile: smiles: smiled: smiled: smiling; live: lives: lived: lived: living; love: loves: loved: loved: loving
bake: bakes: baked: baked: baking; arrive: arrives: arrived: arrived: arriving; invite: invites: invited: invited: inviting
stop: stops: stopped: stopped: stopping; plan: plans: planned: planned: planning; drop: drops: dropped: dropped: dropping
rub: rubs: rubbed: rubbed: rubbing; clap: claps: clapped: clapped: clapping; hug: hugs: hugged: hugged: hugging
study: studies: studied: studied: studying; carry: carries: carried: carried: carrying; try: tries: tried: tried: trying
cry: cries: cried: cried: crying; hurry: hurries: hurried: hurried: hurrying; copy: copies: copied: copied: copying
wash: washes: washed: washed: washing; watch: watches: watched: watched: watching; fix: fixes: fixed: fixed: fixing
miss: misses: missed: missed: missing; reach: reaches: reached: reached: reaching; push: pushes: pushed: pushed: pushing
go: goes: went: gone: going; see: sees: saw: seen: seeing; eat: eats: ate: eaten: eating; give: gives: gave: given: giving
take: takes: took: taken: taking; write: writes: wrote: written: writing; drive: drives: drove: driven: driving
ride: rides: rode: ridden: riding; speak: speaks: spoke: spoken: speaking; break: breaks: broke: broken: breaking
choose: chooses: chose: chosen: choosing; steal: steals: stole: stolen: stealing; fall: falls: fell: fallen: falling
know: knows: knew: known: knowing; grow: grows: grew: grown: growing; throw: throws: threw: thrown: throwing
draw: draws: drew: drawn: drawing; fly: flies: flew: flown: flying; swim: swims: swam: swum: swimming
sing: sings: sang: sung: singing; drink: drinks: drank: drunk: drinking; begin: begins: began: begun: beginning
ring: rings: rang: rung: ringing; run: runs: ran: run: running; come: comes: came: come: coming
become: becomes: became: become: becoming; buy: buys: bought: bought: buying; bring: brings: brought: brought: bringing
think: thinks: thought: thought: thinking; catch: catches: caught: caught: catching; teach: teaches: taught: taught: teaching
sell: sells: sold: sold: selling; tell: tells: told: told: telling; find: finds: found: found: finding
build: builds: built: built: building; send: sends: sent: sent: sending; spend: spends: spent: spent: spending
lose: loses: lost: lost: losing; keep: keeps: kept: kept: keeping; sleep: sleeps: slept: slept: sleeping
feel: feels: felt: felt: feeling; leave: leaves: left: left: leaving; meet: meets: met: met: meeting
win: wins: won: won: winning; sit: sits: sat: sat: sitting; stand: stands: stood: stood: standing
hold: holds: held: held: holding; make: makes: made: made: making; pay: pays: paid: paid: paying; say: says: said: said: saying
wear: wears: wore: worn: wearing; forget: forgets: forgot: forgotten: forgetting; hide: hides: hid: hidden: hiding
shake: shakes: shook: shaken: shaking; wake: wakes: woke: woken: waking; freeze: freezes: froze: frozen: freezing
cut: cuts: cut: cut: cutting; put: puts: put: put: putting; hit: hits: hit: hit: hitting; shut: shuts: shut: shut: shutting
""")

#: Verb to the person who does it.
AGENTS = pairs("""
teach: teacher; bake: baker; paint: painter; write: writer; sing: singer; drive: driver; build: builder; farm: farmer
run: runner; swim: swimmer; dance: dancer; play: player; read: reader; sell: seller; buy: buyer; help: helper
manage: manager; lead: leader; speak: speaker; hunt: hunter; climb: climber; win: winner; lose: loser; own: owner
report: reporter; print: printer; clean: cleaner; design: designer; play: player; work: worker; travel: traveller
act: actor; direct: director; edit: editor; visit: visitor; invent: inventor; sail: sailor; instruct: instructor
inspect: inspector; collect: collector; translate: translator; create: creator; narrate: narrator; conduct: conductor
weave: weaver; ride: rider; skate: skater; jog: jogger; drum: drummer; rob: robber; plan: planner; train: trainer
""")

#: Adjective, comparative, superlative.
ADJECTIVES = table("""
small: smaller: smallest; tall: taller: tallest; short: shorter: shortest; long: longer: longest; young: younger: youngest
old: older: oldest; cold: colder: coldest; warm: warmer: warmest; fast: faster: fastest; slow: slower: slowest
strong: stronger: strongest; weak: weaker: weakest; hard: harder: hardest; soft: softer: softest; loud: louder: loudest
quiet: quieter: quietest; deep: deeper: deepest; dark: darker: darkest; bright: brighter: brightest; cheap: cheaper: cheapest
rich: richer: richest; poor: poorer: poorest; clean: cleaner: cleanest; sweet: sweeter: sweetest; light: lighter: lightest
thick: thicker: thickest; sharp: sharper: sharpest; kind: kinder: kindest; smart: smarter: smartest; new: newer: newest
large: larger: largest; nice: nicer: nicest; wide: wider: widest; late: later: latest; safe: safer: safest
brave: braver: bravest; wise: wiser: wisest; close: closer: closest; strange: stranger: strangest; pale: paler: palest
big: bigger: biggest; hot: hotter: hottest; fat: fatter: fattest; thin: thinner: thinnest; wet: wetter: wettest
sad: sadder: saddest; red: redder: reddest; happy: happier: happiest; easy: easier: easiest; busy: busier: busiest
heavy: heavier: heaviest; funny: funnier: funniest; dirty: dirtier: dirtiest; early: earlier: earliest
lucky: luckier: luckiest; noisy: noisier: noisiest; angry: angrier: angriest; hungry: hungrier: hungriest
pretty: prettier: prettiest; ugly: uglier: ugliest; dry: drier: driest; good: better: best; bad: worse: worst
careful: more careful: most careful; modern: more modern: most modern; famous: more famous: most famous
useful: more useful: most useful; expensive: more expensive: most expensive; dangerous: more dangerous: most dangerous
beautiful: more beautiful: most beautiful; difficult: more difficult: most difficult; patient: more patient: most patient
""")

#: Word to its opposite.
ANTONYMS = pairs("""
hot: cold; big: small; tall: short; fast: slow; young: old; happy: sad; rich: poor; strong: weak; hard: soft; loud: quiet
deep: shallow; dark: bright; cheap: expensive; clean: dirty; sweet: bitter; heavy: light; thick: thin; wide: narrow
early: late; safe: dangerous; brave: cowardly; wet: dry; easy: difficult; full: empty; open: closed; high: low
near: far; true: false; right: wrong; left: right; up: down; in: out; day: night; summer: winter; north: south; east: west
love: hate; win: lose; buy: sell; push: pull; start: stop; remember: forget; laugh: cry; arrive: depart; accept: refuse
increase: decrease; always: never; inside: outside; above: below; before: after; first: last; black: white; war: peace
life: death; question: answer; friend: enemy; success: failure; maximum: minimum; borrow: lend; ancient: modern
polite: rude; guilty: innocent; smooth: rough; sharp: blunt; awake: asleep; alive: dead; present: absent; public: private
""")

#: Adjective to adverb.
ADVERBS = pairs("""
quick: quickly; slow: slowly; loud: loudly; quiet: quietly; soft: softly; brave: bravely; careful: carefully; kind: kindly
clear: clearly; deep: deeply; proud: proudly; sad: sadly; warm: warmly; wise: wisely; calm: calmly; safe: safely
happy: happily; easy: easily; angry: angrily; lucky: luckily; heavy: heavily; noisy: noisily; hungry: hungrily; busy: busily
gentle: gently; simple: simply; possible: possibly; terrible: terribly; comfortable: comfortably; probable: probably
honest: honestly; patient: patiently; polite: politely; perfect: perfectly; sudden: suddenly; strange: strangely
beautiful: beautifully; useful: usefully; final: finally; usual: usually; real: really; total: totally; good: well
""")

#: Adjective to noun.
NESS = pairs("""
happy: happiness; sad: sadness; kind: kindness; dark: darkness; weak: weakness; ill: illness; lazy: laziness
good: goodness; bright: brightness; soft: softness; lonely: loneliness; cold: coldness; sick: sickness; fit: fitness
rude: rudeness; polite: politeness; great: greatness; sharp: sharpness; thick: thickness; ugly: ugliness; empty: emptiness
busy: business; heavy: heaviness; fair: fairness; sweet: sweetness; shy: shyness; calm: calmness; careless: carelessness
""")
del NESS["busy"]  # "business" is a different word

#: Word to its negation with a prefix.
NEGATED = pairs("""
happy: unhappy; fair: unfair; kind: unkind; able: unable; lucky: unlucky; known: unknown; safe: unsafe; usual: unusual
clear: unclear; true: untrue; tidy: untidy; healthy: unhealthy; certain: uncertain; common: uncommon; possible: impossible
polite: impolite; patient: impatient; perfect: imperfect; moral: immoral; mature: immature; correct: incorrect
visible: invisible; complete: incomplete; active: inactive; direct: indirect; formal: informal; legal: illegal
logical: illogical; regular: irregular; responsible: irresponsible; honest: dishonest; loyal: disloyal; agree: disagree
appear: disappear; obey: disobey; like: dislike; lock: unlock; tie: untie; pack: unpack; cover: uncover; fold: unfold
""")

#: Full form to contraction.
CONTRACTIONS = pairs("""
do not: don't; does not: doesn't; did not: didn't; is not: isn't; are not: aren't; was not: wasn't; were not: weren't
have not: haven't; has not: hasn't; had not: hadn't; will not: won't; would not: wouldn't; cannot: can't
could not: couldn't; should not: shouldn't; must not: mustn't; I am: I'm; you are: you're; we are: we're; they are: they're
I will: I'll; you will: you'll; he will: he'll; she will: she'll; we will: we'll; they will: they'll; I have: I've
you have: you've; we have: we've; they have: they've; let us: let's
""")

#: Common words of four to ten letters, for edits of letters and lists.
PLAIN = words("""
anchor animal arrow artist autumn bakery balance banana basket battle bedroom bicycle blanket border bottle branch bread
breeze brother bucket butter cabin camera candle carbon castle ceiling cellar cherry circle citizen climate clock coffee
copper corner cotton cousin crystal culture dancer danger desert diamond dinner doctor dragon dream eagle engine evening
fabric father feather fiction figure finger flame flight forest fortune fountain friend galaxy garden garlic ginger glacier
glove gravel guitar hammer harbor harvest helmet history holiday honey horizon hunter insect island jacket jungle kitchen
ladder language lantern lemon letter library lizard machine magnet manager marble market meadow medal melody memory metal
minute mirror mixture morning mother motor muscle museum music napkin nature needle network nephew number object ocean
office onion opera orange orchard oxygen package palace panel parade parrot pattern pepper pigeon pillow pirate planet
plastic pocket poem poison potato powder prince profit pumpkin puzzle quarter rabbit raisin ribbon river robot rocket
saddle salad sample season secret shadow shelter signal silver sister soldier spider spirit spring stable station story
stream student summer sunset surface symbol system teacher temple theater thunder ticket tiger timber tomato tongue
tower tractor traffic travel treasure tunnel turtle umbrella uncle valley velvet village violin visitor volcano wagon
walnut weather whisper willow window winner winter wisdom yellow zebra breakfast chocolate dolphin elephant festival
hospital keyboard mountain notebook passport question sandwich tomorrow universe vacation waterfall butterfly
""")
