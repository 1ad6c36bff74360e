"""Parts of sentences, reviews, tickets, headlines and chats, with their labels."""

from __future__ import annotations

from promptlora.data.synthetic.vocabulary.tables import lines, table, words

#: Subjects in the third person singular with an unambiguous pronoun, and that pronoun.
SUBJECTS = table("""
the boy: he; the girl: she; my sister: she; my brother: he; the princess: she; the old man: he; the queen: she; our uncle: he
the prince: he; my aunt: she; the young woman: she; the king: he; my father: he; her mother: she; his grandfather: he
""")
#: Base form of a verb, and objects that suit it.
ACTIONS = table("""
open: the door, the window, the box, a letter; clean: the kitchen, the car, the table, the garage; paint: the fence, the wall, a picture
write: a letter, a poem, the report; build: a house, a boat, the bridge; buy: a lamp, the tickets, a new coat
find: the key, a coin, the map; carry: the basket, the suitcase, a ladder; break: the vase, a cup, the mirror
wash: the dishes, the shirt, the car; sell: the farm, a painting, the old boat; watch: the game, a film, the parade
bake: a cake, the bread; catch: the ball, a fish, the train; draw: a map, a tree, the castle; fix: the roof, a bicycle, the radio
""")
PLACES = lines("""
in the garden
at home
in the village
near the river
at school
in the kitchen
behind the house
at the market
""")
TIMES = words("yesterday today")

POSITIVE = lines("""
it works perfectly
I love it
the quality is excellent
it was worth every penny
I would buy it again
it looks beautiful
great value for the money
it exceeded my expectations
I am very happy with it
best purchase this year
my family adores it
it arrived early and works great
absolutely fantastic
I use it every day and enjoy it
highly recommended
""")
NEGATIVE = lines("""
it broke after two days
I hate it
the quality is terrible
it was a waste of money
I want my money back
it looks ugly
far too expensive for what it is
it stopped working at once
I am very disappointed
worst purchase this year
my family dislikes it
it arrived late and damaged
absolutely awful
I regret buying it
do not buy this
""")
NEUTRAL = lines("""
it is about the size of a shoe box
it comes in two colours
I bought it last week
it has a one-year warranty
the manual is in English
it weighs two kilograms
it is made of plastic
it was delivered on Monday
""")

#: Department, and subjects that a customer writes to it about.
TICKETS = {
    "billing": lines("""
I was charged twice this month
please send me the invoice for March
my refund has not arrived
the amount on my bill is wrong
why did the price of my plan go up
my credit card was declined
I need a receipt for my last payment
how do I change my payment method
there is a fee on my bill that I do not know
"""),
    "technical": lines("""
the app crashes when I open it
I cannot log in to my account
the screen stays black after the update
my password reset link does not work
the website shows error 500
the printer does not connect to wifi
the video has no sound
the file cannot be opened
the app is very slow since yesterday
"""),
    "shipping": lines("""
my package has not arrived
where is my order
the parcel was left at the wrong address
I never got a tracking number
can you deliver on Saturday
the box was damaged on the way
how long does delivery take
I want to change the delivery address
the courier never rang the bell
"""),
    "sales": lines("""
do you offer a discount for schools
I want to buy fifty licences
can I get a quote for our office
which plan is best for a small team
is there a free trial
do you have this jacket in green
I would like a demo of your product
when will the new model be on sale
what is the price for ten users
"""),
}
URGENT = lines("""
I need this solved right now.
This is an emergency!
Please act immediately.
We are losing money every minute.
It cannot wait until tomorrow.
""")
CALM = lines("""
There is no hurry.
Whenever you have time is fine.
It can wait until next week.
Take your time.
No rush at all.
""")

#: Topic to headlines.
HEADLINES = {
    "sports": ("{city} wins the cup after extra time", "Striker from {city} scores three goals", "Tennis star {last} reaches the final", "{city} marathon draws record runners", "Coach {last} leaves the team", "Swimmer {last} breaks the world record", "Goalkeeper {last} injured before the match"),
    "business": ("Shares of {last} Motors fall sharply", "{city} bank reports higher profits", "{last} Foods buys its rival", "Car maker {last} cuts a thousand jobs", "Inflation in {city} slows down", "Investors pour money into {last} Energy", "Oil prices rise after {city} talks"),
    "science": ("Researchers in {city} discover a new planet", "Professor {last} finds an old fossil", "New telescope near {city} sees distant galaxy", "{city} lab tests a vaccine", "Physicist {last} measures a rare particle", "Study from {city} explains how bees navigate", "Dr {last} maps the genes of wheat"),
    "politics": ("Mayor of {city} wins the election", "Senator {last} proposes a new law", "Parliament in {city} votes on the budget", "Minister {last} resigns", "President {last} meets allies in {city}", "{city} council passes a tax reform", "Voters in {city} go to the polls"),
    "weather": ("Heavy snow closes roads near {city}", "Storm heads for {city}", "Heat wave in {city} breaks records", "Floods after three days of rain in {city}", "Fog delays flights in {city}", "Sunny weekend expected in {city}", "Strong winds uproot trees in {city}"),
    "food": ("Chef {last} opens a noodle bar in {city}", "The best pizza in {city}", "{last} shares a recipe for lemon cake", "{city} bakery wins a prize for its bread", "Five soups to try in {city}", "Restaurant {last} earns a second star", "How {city} fell in love with dumplings"),
}  # fmt: skip

#: Emotion to things that people say.
EMOTIONS = {
    "joy": lines("""
I got the job, this is wonderful
we are having a baby and I could sing
what a lovely surprise, I am so happy
I passed the exam, hooray
I cannot stop smiling today
this is the best day of my life
we won the match, what a great feeling
my best friend is coming, I am delighted
my son took his first steps, what a joy
the sun is out and I feel great
I could dance with happiness
we got the house, I am over the moon
this concert makes me so happy
"""),
    "sadness": lines("""
my grandmother died and I miss her
I feel so lonely since she left
I cried all night
nothing makes me smile any more
we had to say goodbye to our old dog
I lost my best friend
my heart is broken
I feel empty and down
my cat ran away and I weep for her
the funeral was on Monday, I still grieve
I am so unhappy in this town
tears run down my face again
nobody came to my party, I am heartbroken
"""),
    "anger": lines("""
how dare you read my letters
I am furious about this mess
he lied to me again and I am mad
stop it, you drive me crazy
this is outrageous, I will not accept it
they cheated us and I am fuming
I am sick of your excuses
who scratched my car, I am livid
this noise makes my blood boil
get this out of my sight, I am enraged
they broke their promise and I am outraged
I hate how you treat me
he insulted my mother, I am so mad
"""),
    "fear": lines("""
I heard steps behind me and I am scared
I am terrified of the operation
what if the plane crashes
my hands shake when I think of the exam
there is someone in the dark garden
I am afraid to walk home alone
I panic whenever the lift stops
the storm frightens me
I dread the night
a shadow moved and I froze in terror
please stay, I am afraid of the dark
spiders give me the creeps, I am petrified
what if I fail, I am so anxious
"""),
}

#: Intent to what a user says to an assistant.
INTENTS = {
    "play music": ("play some jazz", "put on the new album by {first}", "start my party playlist", "I want to hear piano music", "play the song {first} likes", "turn on some rock music"),
    "set alarm": ("wake me at {hour}", "set an alarm for {hour}", "make sure I am up by {hour}", "alarm at {hour} please", "can you ring at {hour} tomorrow morning", "I have to get up at {hour}"),
    "check weather": ("will it rain in {city}", "how warm is it in {city}", "do I need an umbrella in {city}", "what is the forecast for {city}", "is it snowing in {city}", "weather in {city} please"),
    "send message": ("text {first} that I am late", "tell {first} that dinner is ready", "send {first} a message", "write to {first} that I said hello", "let {first} know that I am on my way", "message {first} about the party"),
    "book table": ("reserve a table for {number}", "book a table in {city} for {number} people", "I want to eat out with {number} friends, reserve something", "get us a table at {hour}", "dinner reservation for {number} at {hour}", "find a restaurant in {city} and book it"),
    "turn on light": ("switch on the lamp", "it is too dark in here", "lights on in the kitchen", "make the bedroom brighter", "turn on the light in the hall", "can you light up the garage"),
}  # fmt: skip

SPAM = ("You have won ${n}! Click here to claim it", "Cheap pills, {n} percent off, order today", "Congratulations {first}, you are our lucky winner number {n}", "Make ${n} a week from home, no work needed", "Your account is locked, send us your password now", "Free phone for the first {n} callers, act now", "Hot offer: lose {n} pounds in ten days", "Dear friend, I am a prince and need your bank details, reward ${n}")  # fmt: skip
HAM = ("Hi {first}, are we still on for lunch at {hour}?", "{first}, I attached the report for chapter {n}", "The meeting moved to {hour}, see you there", "Thanks for the photos from {city}, they are lovely", "Can you pick up {first} from school at {hour}?", "Mum called, she will be in {city} on Sunday", "Your library book is due in {n} days", "{first} sends greetings from {city}")  # fmt: skip

FORMAL = ("Dear Ms {last}, I am writing to request a meeting.", "I would be grateful if you could reply, Mr {last}.", "Please find the requested document enclosed, Dr {last}.", "We regret to inform you that the office in {city} is closed.", "I look forward to your reply, Mr {last}.", "Thank you for your inquiry, Ms {last}; we shall respond shortly.", "Kindly confirm your attendance at the conference in {city}.", "It was a pleasure to meet you in {city}, Professor {last}.")  # fmt: skip
CASUAL = ("hey {first}, wanna hang out?", "lol that was so cool {first}", "yo {first}, gimme a call", "sup {first}, you coming or what?", "gonna grab some pizza with {first}, u in?", "omg {city} was awesome!!", "nah I'm good, thx {first}", "hey dude, {city} rocks")  # fmt: skip

RUDE = lines("""
Give me the keys, now.
Shut up and listen.
Get out of my way.
You are useless, do it again.
Hurry up, idiot.
I do not care what you want.
Stop talking nonsense.
That was a stupid question.
Move your car or else.
Nobody asked you.
Go away and leave me alone.
You are too slow, as always.
What a dumb idea.
Pick it up yourself.
You smell, sit somewhere else.
I told you, fool.
Don't waste my time.
Your cooking is disgusting.
Get lost.
Who let you in here?
""")
POLITE = lines("""
Could you please pass me the keys?
Would you mind waiting a moment?
Excuse me, may I get through?
Thank you so much for your help.
Please take your time.
I would be glad to hear your opinion.
May I ask you a question?
That is very kind of you.
Would you please move your car?
I appreciate your advice.
Pardon me, is this seat free?
You are most welcome.
Would it be possible to meet tomorrow?
I beg your pardon.
After you, please.
Thank you for waiting.
May I offer you some tea?
I am sorry to disturb you.
It would be lovely to see you again.
Please let me know if I can help.
""")

QUESTIONS = ("Where does {first} live?", "Did you see {first} in {city}?", "How old is your {noun}?", "What time does the {noun} open?", "Is {city} a big city?", "Who took my {noun}?", "Can {first} swim?", "Why is the {noun} so heavy?")  # fmt: skip
STATEMENTS = ("{first} lives in {city}.", "I saw {first} at the station.", "The {noun} is twenty years old.", "My {noun} is on the table.", "{city} is far from here.", "Somebody took the {noun}.", "{first} likes to swim.", "The {noun} is very heavy.")  # fmt: skip
COMMANDS = ("Close the {noun}.", "Bring me the {noun}.", "Call {first} at once.", "Wait here, {first}.", "Do not touch the {noun}.", "Look at the {noun}.", "Go to {city}.", "Put the {noun} on the shelf.")  # fmt: skip

#: Language to short sentences; ``{first}`` stands for a name.
FOREIGN = {
    "English": ("I live in {city}.", "My name is {first}.", "Where is {first} today?", "{first} has a small house.", "We are going to {city} tomorrow.", "The weather in {city} is nice.", "{first} does not drink coffee."),
    "Spanish": ("Vivo en {city}.", "Me llamo {first}.", "¿Dónde está {first} hoy?", "{first} tiene una casa pequeña.", "Mañana vamos a {city}.", "Hace buen tiempo en {city}.", "{first} no bebe café."),
    "French": ("J'habite à {city}.", "Je m'appelle {first}.", "Où est {first} aujourd'hui ?", "{first} a une petite maison.", "Demain nous allons à {city}.", "Il fait beau à {city}.", "{first} ne boit pas de café."),
    "German": ("Ich wohne in {city}.", "Ich heiße {first}.", "Wo ist {first} heute?", "{first} hat ein kleines Haus.", "Morgen fahren wir nach {city}.", "Das Wetter in {city} ist schön.", "{first} trinkt keinen Kaffee."),
    "Italian": ("Abito a {city}.", "Mi chiamo {first}.", "Dov'è {first} oggi?", "{first} ha una piccola casa.", "Domani andiamo a {city}.", "A {city} fa bel tempo.", "{first} non beve caffè."),
}  # fmt: skip

LABELS = words("""
zig zag blip blop dax wug mork fip toma kiki bouba plix gorp snee vash quill trem lorn pob zune hask mim tark yeb frob
nop rill sook dray wex
""")
