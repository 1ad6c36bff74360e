"""Small tables of world knowledge: things by kind, countries, animals, elements, codes."""

from __future__ import annotations

from promptlora.data.synthetic.vocabulary.tables import pairs, table, words

#: Maps each kind to its things. No word belongs to two kinds.
THINGS = {
    "animal": words("ant bear cat cow deer dog eagle elephant fox frog goat horse lion monkey mouse owl penguin pig rabbit shark sheep snake tiger whale wolf zebra"),
    "fruit": words("apple apricot banana blueberry cherry fig grape kiwi lemon lime mango melon papaya peach pear pineapple plum raspberry strawberry"),
    "vegetable": words("asparagus beet broccoli cabbage carrot cauliflower celery garlic kale leek lettuce onion pea potato radish spinach turnip zucchini"),
    "tool": words("axe chisel drill hammer hoe ladder pliers rake saw screwdriver shovel spade wrench"),
    "vehicle": words("airplane ambulance bicycle boat bus car ferry helicopter motorcycle scooter ship taxi tractor train tram truck van"),
    "clothing": words("blouse boots coat dress glove hat jacket pajamas sandals scarf shirt shoes shorts skirt socks sweater trousers vest"),
    "furniture": words("armchair bed bench bookcase chair couch cupboard desk dresser sofa stool table wardrobe"),
    "instrument": words("accordion banjo cello clarinet drum flute guitar harp oboe piano saxophone trombone trumpet tuba ukulele violin"),
    "colour": words("beige black blue brown crimson gray green magenta maroon pink purple red teal turquoise white yellow"),
    "job": words("baker barber carpenter dentist doctor farmer lawyer mechanic nurse painter pilot plumber sailor tailor teacher waiter"),
    "body part": words("ankle arm chin ear elbow eye finger foot hand knee leg mouth neck nose shoulder thumb toe wrist"),
    "drink": words("coffee cola juice lemonade milk tea water wine beer cocoa"),
    "sport": words("badminton baseball basketball boxing cricket football golf hockey rugby skiing tennis volleyball wrestling"),
    "plant": words("cactus daisy fern ivy lily moss oak orchid palm pine rose sunflower tulip willow"),
}  # fmt: skip

#: Country, capital, continent, nationality, two-letter code.
COUNTRIES = table("""
France: Paris: Europe: French: FR; Germany: Berlin: Europe: German: DE; Italy: Rome: Europe: Italian: IT
Spain: Madrid: Europe: Spanish: ES; Portugal: Lisbon: Europe: Portuguese: PT; Greece: Athens: Europe: Greek: GR
Austria: Vienna: Europe: Austrian: AT; Belgium: Brussels: Europe: Belgian: BE; Denmark: Copenhagen: Europe: Danish: DK
Norway: Oslo: Europe: Norwegian: NO; Sweden: Stockholm: Europe: Swedish: SE; Finland: Helsinki: Europe: Finnish: FI
Poland: Warsaw: Europe: Polish: PL; Hungary: Budapest: Europe: Hungarian: HU; Ireland: Dublin: Europe: Irish: IE
Iceland: Reykjavik: Europe: Icelandic: IS; Romania: Bucharest: Europe: Romanian: RO; Bulgaria: Sofia: Europe: Bulgarian: BG
Croatia: Zagreb: Europe: Croatian: HR; Serbia: Belgrade: Europe: Serbian: RS; Ukraine: Kyiv: Europe: Ukrainian: UA
Japan: Tokyo: Asia: Japanese: JP; China: Beijing: Asia: Chinese: CN; India: New Delhi: Asia: Indian: IN
Thailand: Bangkok: Asia: Thai: TH; Vietnam: Hanoi: Asia: Vietnamese: VN; Indonesia: Jakarta: Asia: Indonesian: ID
Iran: Tehran: Asia: Iranian: IR; Iraq: Baghdad: Asia: Iraqi: IQ; Mongolia: Ulaanbaatar: Asia: Mongolian: MN
Nepal: Kathmandu: Asia: Nepalese: NP; Pakistan: Islamabad: Asia: Pakistani: PK; Bangladesh: Dhaka: Asia: Bangladeshi: BD
Jordan: Amman: Asia: Jordanian: JO; Lebanon: Beirut: Asia: Lebanese: LB; Syria: Damascus: Asia: Syrian: SY
Philippines: Manila: Asia: Filipino: PH; Egypt: Cairo: Africa: Egyptian: EG; Kenya: Nairobi: Africa: Kenyan: KE
Morocco: Rabat: Africa: Moroccan: MA; Nigeria: Abuja: Africa: Nigerian: NG; Ghana: Accra: Africa: Ghanaian: GH
Ethiopia: Addis Ababa: Africa: Ethiopian: ET; Tunisia: Tunis: Africa: Tunisian: TN; Algeria: Algiers: Africa: Algerian: DZ
Senegal: Dakar: Africa: Senegalese: SN; Uganda: Kampala: Africa: Ugandan: UG; Angola: Luanda: Africa: Angolan: AO
Zambia: Lusaka: Africa: Zambian: ZM; Zimbabwe: Harare: Africa: Zimbabwean: ZW; Rwanda: Kigali: Africa: Rwandan: RW
Brazil: Brasilia: South America: Brazilian: BR; Argentina: Buenos Aires: South America: Argentine: AR
Chile: Santiago: South America: Chilean: CL; Peru: Lima: South America: Peruvian: PE
Colombia: Bogota: South America: Colombian: CO; Ecuador: Quito: South America: Ecuadorian: EC
Uruguay: Montevideo: South America: Uruguayan: UY; Venezuela: Caracas: South America: Venezuelan: VE
Paraguay: Asuncion: South America: Paraguayan: PY; Canada: Ottawa: North America: Canadian: CA
Mexico: Mexico City: North America: Mexican: MX; Cuba: Havana: North America: Cuban: CU
Jamaica: Kingston: North America: Jamaican: JM; Panama: Panama City: North America: Panamanian: PA
""")

#: Country to the name of its currency.
CURRENCIES = pairs("""
Japan: yen; China: yuan; India: rupee; Pakistan: rupee; Nepal: rupee; Mexico: peso; Argentina: peso; Chile: peso
Colombia: peso; Cuba: peso; Uruguay: peso; France: euro; Germany: euro; Italy: euro; Spain: euro; Portugal: euro
Greece: euro; Austria: euro; Belgium: euro; Finland: euro; Ireland: euro; Denmark: krone; Norway: krone; Sweden: krona
Iceland: krona; Canada: dollar; Jamaica: dollar; Poland: zloty; Hungary: forint; Thailand: baht; Vietnam: dong
Egypt: pound; Syria: pound; Lebanon: pound; Kenya: shilling; Uganda: shilling; Brazil: real; Peru: sol; Ukraine: hryvnia
Morocco: dirham; Nigeria: naira; Jordan: dinar; Iraq: dinar; Tunisia: dinar; Algeria: dinar; Ethiopia: birr; Iran: rial
""")

#: Animal to its young.
YOUNG = pairs("""
cat: kitten; dog: puppy; cow: calf; horse: foal; sheep: lamb; goat: kid; pig: piglet; duck: duckling; goose: gosling
lion: cub; bear: cub; tiger: cub; wolf: pup; seal: pup; fox: cub; deer: fawn; kangaroo: joey; koala: joey; swan: cygnet
owl: owlet; eagle: eaglet; frog: tadpole; butterfly: caterpillar; elephant: calf; whale: calf; giraffe: calf
camel: calf; dolphin: calf; donkey: foal; zebra: foal; hen: chick; penguin: chick; spider: spiderling; bee: larva
""")

#: Animal to the verb for its sound.
SOUNDS = pairs("""
cat: meow; dog: bark; cow: moo; horse: neigh; sheep: bleat; goat: bleat; pig: oink; duck: quack; lion: roar; tiger: roar
wolf: howl; frog: croak; crow: caw; owl: hoot; snake: hiss; bee: buzz; fly: buzz; mosquito: buzz; donkey: bray
mouse: squeak; hen: cluck; rooster: crow; pigeon: coo; dove: coo; elephant: trumpet; goose: honk; cricket: chirp
sparrow: chirp; bear: growl; turkey: gobble
""")

#: Animal to where it lives.
HOMES = pairs("""
bee: hive; bird: nest; spider: web; dog: kennel; horse: stable; pig: sty; lion: den; fox: den; rabbit: burrow; hen: coop
bear: cave; bat: cave; cow: barn; ant: anthill; beaver: lodge; eagle: nest; owl: nest; squirrel: nest; mole: burrow
wolf: den; badger: sett; fish: water; snail: shell; turtle: shell; sheep: fold; pigeon: loft; swallow: nest; wasp: nest
""")

#: Thing to its usual colour.
COLOURS = pairs("""
banana: yellow; lemon: yellow; sun: yellow; canary: yellow; butter: yellow; tomato: red; strawberry: red; blood: red
cherry: red; fire engine: red; ruby: red; grass: green; cucumber: green; spinach: green; frog: green; emerald: green
pea: green; broccoli: green; lettuce: green; carrot: orange; pumpkin: orange; apricot: orange; tangerine: orange
snow: white; milk: white; salt: white; swan: white; chalk: white; cotton: white; coal: black; tar: black; raven: black
ink: black; panther: black; chocolate: brown; coffee: brown; soil: brown; walnut: brown; bark: brown; sapphire: blue
sky: blue; blueberry: blue; ocean: blue; flamingo: pink; pig: pink; eggplant: purple; lavender: purple; violet: purple
elephant: gray; ash: gray; mouse: gray; lead: gray; dolphin: gray; sunflower: yellow; sapling: green
""")

#: Chemical element to its symbol.
ELEMENTS = pairs("""
hydrogen: H; helium: He; lithium: Li; beryllium: Be; boron: B; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne
sodium: Na; magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar; potassium: K
calcium: Ca; titanium: Ti; chromium: Cr; manganese: Mn; iron: Fe; cobalt: Co; nickel: Ni; copper: Cu; zinc: Zn
bromine: Br; krypton: Kr; silver: Ag; tin: Sn; iodine: I; xenon: Xe; barium: Ba; platinum: Pt; gold: Au; mercury: Hg
lead: Pb; radium: Ra; uranium: U; plutonium: Pu; tungsten: W
""")

#: State of the USA to its code.
STATES = pairs("""
Alabama: AL; Alaska: AK; Arizona: AZ; Arkansas: AR; California: CA; Colorado: CO; Connecticut: CT; Delaware: DE; Florida: FL
Georgia: GA; Hawaii: HI; Idaho: ID; Illinois: IL; Indiana: IN; Iowa: IA; Kansas: KS; Kentucky: KY; Louisiana: LA; Maine: ME
Maryland: MD; Massachusetts: MA; Michigan: MI; Minnesota: MN; Mississippi: MS; Missouri: MO; Montana: MT; Nebraska: NE
Nevada: NV; New Hampshire: NH; New Jersey: NJ; New Mexico: NM; New York: NY; North Carolina: NC; North Dakota: ND; Ohio: OH
Oklahoma: OK; Oregon: OR; Pennsylvania: PA; Rhode Island: RI; South Carolina: SC; South Dakota: SD; Tennessee: TN; Texas: TX
Utah: UT; Vermont: VT; Virginia: VA; Washington: WA; West Virginia: WV; Wisconsin: WI; Wyoming: WY
""")

#: Job to the place of work.
WORKPLACES = pairs("""
doctor: hospital; nurse: hospital; surgeon: hospital; teacher: school; baker: bakery; waiter: restaurant; chef: restaurant
librarian: library; farmer: farm; judge: court; lawyer: court; pilot: airplane; sailor: ship; captain: ship; miner: mine
actor: theater; professor: university; astronaut: space station; banker: bank; cashier: shop; priest: church
mechanic: garage; soldier: army base; hairdresser: salon; scientist: laboratory; chemist: laboratory; gardener: garden
butcher: butcher shop; pharmacist: pharmacy; zookeeper: zoo; receptionist: hotel; lifeguard: beach; barista: cafe
""")

#: Product to the shop that sells it.
SHOPS = pairs("""
bread: bakery; cake: bakery; rolls: bakery; croissants: bakery; aspirin: pharmacy; bandages: pharmacy; cough syrup: pharmacy
vitamins: pharmacy; novel: bookshop; dictionary: bookshop; atlas: bookshop; cookbook: bookshop; roses: florist
tulips: florist; bouquet: florist; orchids: florist; sausages: butcher; steak: butcher; ham: butcher; ground beef: butcher
boots: shoe shop; sandals: shoe shop; slippers: shoe shop; sneakers: shoe shop; ring: jeweller; necklace: jeweller
earrings: jeweller; bracelet: jeweller; doll: toy shop; puzzle: toy shop; teddy bear: toy shop; building blocks: toy shop
""")

#: Maps each letter to its word in the radio alphabet, and to its Morse code.
RADIO = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", words("Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec Romeo Sierra Tango Uniform Victor Whiskey X-ray Yankee Zulu"), strict=True))  # fmt: skip
MORSE = dict(zip("abcdefghijklmnopqrstuvwxyz", words(".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --.."), strict=True))  # fmt: skip

MONTHS = words("January February March April May June July August September October November December")
WEEKDAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

#: Things ordered from small to large; only two things that are at least three positions apart are compared.
SIZES = words("ant bee mouse rat cat dog sheep pig cow elephant whale")
